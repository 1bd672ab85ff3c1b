"""Words that train_assistant.py makes questions and conversations from: a table, and no code.

Patterns are written as in assistant/talk.txt. The answers are there, too, but for two.
"""

# How often what is asked about, in a hundred questions.
SHARES = {"fact": 48, "meaning": 17, "default": 4, "variable": 3, "other": 2, "none": 6, "off": 20}
# How many questions conversations have: one of these.
LENGTHS = [1, 1, 1, 1, 1, 2, 2, 2, 3, 4]

NO_FLAG = "I know no flag of that name. docs/flags.md lists every flag."
OFF_SUBJECT = "I know only about Tensorgate, the server that runs me. Ask me about its flags, routes, models or limits."

# How a subject of assistant/talk.txt can be asked about, and a status.
SUBJECT_FRAMES = """
%s / %s / %s / what is %s / what are %s / what about %s /
[tell me|say something|i want to know] [more |something |]about %s / explain %s / [help|i need help] with %s /
[i have a |]question about %s / what do you know about %s / how does %s work / what can you [say|tell me] about %s /
[info|information] on %s / how is it with %s / what does tensorgate say about %s / can you explain %s /
[i am|i'm] [interested in|asking about|looking for|curious about] %s / [and |but |]what of %s
"""
# A subject among words that say little: what counts is the subject.
AMONG_WORDS = """
[which|what|how|where|is|does|can|my|should|would|your|so|why|will|must|could|has|about|do|i want|i have|i need|we
need|give me|list|find|say] [the|a|my|our|any|this|it|i|you|we|there|]
[use|have|serve|with|for|of|good|best|possible|right|one|some|new|] %s
[work|use|exist|go|look|be|here|there|help|me|it|one|do|mean|run|please|have|my model|the server|a client|]
[with|for|to|in|of|on|now|then|too|] [it|this|me|us|my client|the server|tensorgate|production|a model|]
"""
STATUS_FRAMES = """
[what does|what is|what's|why do i get|when do i get|i get|i got|explain|what about|i see|why] [a |the |][status
|error |http |code |status code |][%s|%s][ mean|] / %s / error %s / %s [error|meaning|status] /
the server [answers|says|returns|gives|sent] %s / my request [gets|got|fails with|failed with|ended in] [a |]%s /
what does [a |]%s [mean|tell me|say] / why [did i get|was there] [a |]%s
"""

# How people ask about a flag by its name, and later, when they have named it.
FLAG_FRAMES = {
    "meaning": """
what [does|is|about] %s[ do| mean|] / %s / [explain|describe] [the flag |the option |]%s /
what is %s [for|good for|used for] / [tell me about|help with|more about] %s /
what does the [flag|option|setting] %s do / [when|why] [do i need|would i use|should i set|should i use] %s /
[how do i|how can i|how to] [use|set] %s / what happens [if|when] i set %s / meaning of %s / can you explain %s /
do you know %s / i do not understand %s / what do i need %s for
    """,
    "default": """
what is the default[ value|] [of|for] %s / [default|default value] [of|for] %s /
which [default|default value] does %s have / what is %s by default / what is %s set to[ by default|] /
does %s have a default / %s default / what [value|default] does %s have / how [large|long|big|high] is %s by default /
tell me the default of %s
    """,
    "variable": """
[what|which] is the [environment |env |]variable [of|for] %s /
[environment variable|env variable|env var|env] [of|for] %s /
how do i set %s [in|by|with|through|from] the environment / which [environment |env ]variable sets %s /
%s [environment variable|env variable|as a variable|env var] / can i set %s in the environment /
how is %s called in the environment
    """,
}
LATER = {
    "meaning": """
[and |]what does it [do|mean] / what is it for / [explain|explain it|what is that] / and what does that do /
what is [that|this] flag for / what does [that|this|the] flag do
    """,
    "default": """
[and |]what is [the|its] default[ value|] / [and |][the|its] default / default / what is it by default /
does it have a default / and by default / what value does it have / which default does it have
    """,
    "variable": """
[and |][what|which] is [the|its] [environment |env ]variable /
[and |][the|its] [environment variable|env variable|variable] / how do i set it in the environment /
can i set it in the environment / is there an environment variable for it / and in the environment
    """,
}
NAMED_LATER = """
and %s / what about %s / and what [does|is] %s / ok, and %s / now %s / how about %s
"""
# These facts ask back, where nothing was named before.
ASK_BACK = ("default-of-what", "which-flag")

# What people want when they need a flag without knowing its name, and how they ask for it.
WANTED_FRAMES = """
[how do i|how can i|how to|how do you|i want to|where do i|can i|how does one]
[set|change|choose|configure|control|adjust|specify|use|limit|get] %s /
[which|what] [flag|option|setting|parameter] [sets|changes|controls|is for|is about|decides|determines] %s /
[flag|option] for %s / %s / is there a [flag|option|setting] for %s / what about %s / [tell me about|explain] %s /
what [decides|determines|controls] %s / i need %s /
[how|where] [may|must|should|might|would] i [set|change|give|say|specify] %s /
[increase|raise|lower|reduce|limit|bound] %s /
how [can|do|could] i [increase|raise|lower|reduce|limit|bound|make|have|define|say] %s
"""
WANTED = {
    "model-repository":
        "a [directory|folder] of [several |many |]models / [a|the] model repository / "
        "the [directory|folder] with my models",
    "model-dir": "the [directory|folder] of one model / the [directory|folder] of a single model",
    "model-name": "the name of [the|a|one] model / the model's name / another model name / renaming the model",
    "model-alias": "another name for a model / a second name of the model / several names of one model / an alias",
    "model-control-mode":
        "[who|what] may load models / loading over the api / the model control mode / watching the repository",
    "repository-poll-secs":
        "the [polling|poll] interval / how often the repository is [looked at|polled|watched|checked]",
    "load-model":
        "which models are loaded at start / only some models at start / "
        "loading only [some|one|a few] of the models",
    "model-init-mode": "waiting for [the|a] model to appear / modelcars / the init mode",
    "profile":
        "answers as [triton|kserve] gives them / the kserve profile / the triton profile / "
        "behaving [like|as] [triton|kserve]",
    "grpc-outputs": "the form of grpc [outputs|answers] / raw grpc outputs / typed grpc contents",
    "host":
        "the address to listen on / the [listen|listening|bind] address / the interface it binds to / "
        "listening on localhost only / the host / localhost",
    "http-port":
        "the http port / the port for http / the rest port / another http port / the port of the rest api / "
        "port 80",
    "grpc-port": "the grpc port / the port for grpc / another grpc port / turning grpc off",
    "metrics-port": "a port for metrics / the metrics port / metrics on another port / a separate port for metrics",
    "max-connections":
        "the [number|count] of connections / the [most|maximum] connections / the connection limit / "
        "connections / too many connections",
    "handshake-timeout": "the time for a tls handshake / the handshake timeout",
    "header-timeout": "the time for the head of a request / the header timeout / slow headers",
    "body-timeout": "the time for a body / the body timeout / the longest pause within a body / slow uploads",
    "idle-timeout":
        "how long idle connections are kept / the idle timeout / the keep-alive time / keep-alive / "
        "idle connections",
    "tls-cert": "the [file of the |]certificate / the tls certificate / the certificate chain",
    "tls-key": "the private key / the tls key / the key of the certificate",
    "api-keys-file": "the file of api keys / the list of api keys",
    "nthread":
        "the number of threads / how many threads compute / the thread count / more threads / "
        "how many cores it uses / only two threads / fewer threads / the threads",
    "max-batch-rows":
        "the batch size / how many rows are computed together / the largest batch / the rows of a batch",
    "max-batch-delay":
        "how long a batch waits / the batch delay / the batching delay / how long requests wait for others",
    "max-model-len":
        "the context length / the longest prompt / the length of prompts / the context size / "
        "how long a prompt may be / longer prompts / the context / the context window",
    "max-num-seqs":
        "how many answers are generated at the same time / how many answers run at once / "
        "concurrent generations / the number of sequences / parallel answers / concurrent answers",
    "max-num-batched-tokens":
        "how many tokens a step computes / the tokens of one step / the token budget / the prefill chunk size",
    "kv-cache-bytes":
        "the memory of the kv cache / the size of the kv cache / the kv cache size / "
        "memory for keys and values / cache memory",
    "dtype": "the float format of weights / the number format of weights / the data type of weights / bfloat16 weights",
    "load-format": "dummy weights / random weights for benchmarks / the load format",
    "tool-call-parser": "how models write tool calls / the format of tool calls / the tool call parser",
    "reasoning-parser": "what stands around thoughts / the reasoning parser / the format of thoughts",
    "generation-timeout":
        "how long an answer of a language model may take / the generation timeout / "
        "the time to generate an answer",
    "max-body-size":
        "the size of a request / the largest request / the maximum [request|body] size / "
        "how [large|big] a request may be / larger requests / bigger bodies / the upload limit / big requests",
    "inflight-bytes": "the bytes in flight / the memory for request bodies / how many bytes of requests are held",
    "queue-size":
        "the [size|length] of the queue / how many requests wait / the queue limit / a longer queue / "
        "the number of waiting requests / how big the queue may get / the queue",
    "request-timeout":
        "how long a request may take / the request timeout / the time for a request / "
        "the longest time of a request / the time limit of requests",
    "drain-delay":
        "the drain delay / how long new connections are accepted after sigterm / the delay before draining",
    "drain-timeout": "the drain timeout / how long running requests may finish / the time to finish on shutdown",
    "log-level":
        "the log level / how much is logged / debug logs / less logging / more logs / verbose logs / "
        "debug output / verbosity / the verbosity of the log",
    "log-format": "the log format / json logs / logs as json / text logs",
    "otlp-endpoint":
        "traces / tracing / opentelemetry / where traces are sent / the opentelemetry collector / "
        "distributed tracing",
    "config":
        "a configuration file / a config file / a toml file / a yaml file / settings in a file / "
        "a yaml config / the config file",
}

# Phrases that stand for others, wherever they are found.
REPHRASED = {
    "how do i":
        "how can i / how could i / how would i / how should i / how do we / how does one / how to / what do i do to / "
        "is there a way to / what is the way to / i want to / i would like to / i need to / tell me how to / "
        "show me how to / can you tell me how to / do you know how to / what is the best way to / i'd like to",
    "can i": "could i / may i / is it possible to / am i able to / can we / can one / would i be able to",
    "does it": "does the server / does this server / does tensorgate / will it / would it / can it",
    "can it": "can the server / can this server / can tensorgate / could it / is it able to / will it",
    "what is": "what's / whats / what exactly is / what is actually / tell me what is",
    "what are": "which are / tell me what are / what exactly are",
    "which": "what",
    "is there": "do you have / does it have / is there perhaps / are there",
    "are there": "does it have / do you have / exist",
    "supported": "possible / available / offered / implemented / okay / allowed",
    "the server": "tensorgate / it / this server / the model server / your server",
    "tell me about":
        "what can you tell me about / give me information about / i want to know about / i'm interested in",
    "explain": "describe / help me understand / please explain / could you explain",
    "use": "work with / try / employ",
    "need": "require / want",
    "get": "obtain / receive / have",
    "send": "pass / give / submit / post",
    "see": "view / look at / find",
    "check": "verify / test / find out",
    "change": "set / modify / adjust / alter",
    "request": "call / query",
    "requests": "calls / queries",
    "answer": "reply / response",
    "answers": "replies / responses",
    "happens": "occurs / goes on",
    "when": "if / in case",
    "show me": "give me / print / let me see",
    "why do i get": "why am i getting / what is the reason for / how come i get / why is there",
    "what does": "what would / tell me what does",
    "for": "of",
    "do you": "can you / could you",
}
# What is left out, put in, or said last, without changing the question.
SMALL = "a an the i it is are do does can to of for with in on my you what how which".split()
FILLERS = ["please", "just", "actually", "really", "exactly", "also", "then", "perhaps", "currently"]
LAST = [
    "with it", "here", "with tensorgate", "in tensorgate", "on this server", "with this server", "for me", "now",
    "by the way", "in short", "in a few words", "again", "in general", "in practice", "for a start", "in your case",
]
# How the same question is typed by different people.
BEFORE = [
    "hi, ", "hello! ", "hey, ", "please tell me: ", "quick question: ", "so ", "and ", "ok, ", "well, ",
    "sorry, ", "please, ", "tell me, ", "i wonder: ", "um ", "hello, ", "one more question: ", "good morning, ",
    "again: ", "i have a question: ", "now ", "hey there, ", "so, ", "alright, ", "hi assistant, ", "excuse me, ",
    "good day, ", "listen, ", "dear assistant, ", "hm, ", "i'm new here. ", "help! ", "another question. ", "next: ",
]
AFTER = [
    "?", "?", "?", "?", "?", "?", "", "", "", "", ".", "!", " ?", "??", " please", " please?", ", please?",
    "? thanks",
]
NAMES = {
    "tensorgate": "Tensorgate", "xgboost": "XGBoost", "lightgbm": "LightGBM", "kserve": "KServe",
    "triton": "Triton", "openai": "OpenAI", "grpc": "gRPC", "http": "HTTP",
    "https": "HTTPS", "tls": "TLS", "api": "API", "json": "JSON", "llm": "LLM", "llms": "LLMs", "gguf": "GGUF",
    "cpu": "CPU", "gpu": "GPU", "i": "I", "prometheus": "Prometheus",
    "kubernetes": "Kubernetes", "docker": "Docker", "linux": "Linux", "windows": "Windows", "python": "Python",
    "rust": "Rust", "url": "URL", "sigterm": "SIGTERM", "onnx": "ONNX", "pytorch": "PyTorch",
    "tensorflow": "TensorFlow",
}
SYSTEM = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.",
    "You are helpful.", "Answer briefly.", "Be concise.",
    "You are Tensorgate's assistant.", "You answer questions about Tensorgate.",
    "You are a friendly and helpful assistant. Answer the user's questions.",
]

# Off the subject. {thing} and so on are words of the lists below; {word} is of any list or made up.
OFF_FRAMES = """
what is the capital of {place} / who [is|was] {person} / [where|what] is {place} /
how [big|old|far|large|rich] is {place} / who invented [the |]{thing} / how do i [cook|make|bake|prepare|eat] {food} /
[give|show] me a recipe for {food} / what is in {food} / is {food} healthy / how many calories has {food} /
what is {number} [plus|times|minus|divided by|+|*|-|/] {number} /
[calculate|compute|solve] {number} [plus|times|+|*] {number} / what is the square root of {number} /
[write|tell] me a [poem|story|song|joke|letter|rhyme|haiku|fairy tale|riddle] about {thing} /
write [an essay|a poem|a story|a speech|an email|a book] about {thing} / [tell me|do you know] a joke / sing a song /
tell me a story / make me laugh / entertain me / say something funny / another joke / be my friend /
let us play a game / what is the weather [like |]in {place} / will it [rain|snow] [today|tomorrow|in {place}] /
what time is it[ in {place}|] / what day is [it|today] / what is today's date /
[translate|say|spell] {word} [in|to|into] {language} / how do you say {word} in {language} /
what does {word} mean in {language} / teach me {language} / what is [a |an |the |]{word} /
what is [a |an |the |]{thing} / what are {thing}s / how does [a |an |the |]{thing} work /
why [is|does] the {thing} {verb} / define {word} / [explain|describe] [a |the |]{word} / tell me about {word} /
tell me [something |more |]about [the |]{thing} / what do you [think|know] about {thing}s / {word} / {thing} /
{word} {word} / {word} {word} {word} / do you [like|love|hate|have|eat|own|want|see] {thing}s / do you know {person} /
have you [ever |]seen {word} / can you {verb} / can you {verb} [a|the|my] {thing} /
i [like|love|hate|want|need] {thing}s / how do i {verb} [a|the|my] {thing} / how can i {verb} {word} /
how [often|long|fast|much] does a {thing} {verb} / where can i {verb} [a|my] {thing} /
when [should|do] i {verb} [a|the] {thing} / why do {thing}s {verb} / do {thing}s {verb} / can {thing}s {verb} /
which {thing} is the [best|biggest|oldest|cheapest] / what is the [best|biggest|oldest|longest|fastest] {thing} /
is {word} a {thing} / how many {thing}s are [there|in {place}] / where do {thing}s come from /
what colour is [a|the] {thing} / how much does a {thing} cost / what does a {thing} eat /
who [won|lost|started] [the|a] {thing} / who is the [president|king|queen|mayor|prime minister] of {place} /
who won the [world cup|election|war|race|match] / how many people live in {place} /
what language do they speak in {place} /
write [a |some |][python|java|javascript|rust|c|sql|bash] [code|program|function|script] [to {verb} a {thing}|that
sorts a list|for a {thing}] / how do i sort a list in [python|java] / fix my [python|java] code /
summarize [this text|the book|the news|{person}] / recommend [a|me a] [book|film|movie|restaurant|hotel|song|game] /
plan a trip to {place} / how do i get to {place} / book a [flight|table|hotel] in {place} /
i feel [sad|ill|lonely|happy|tired] / i have a headache / should i see a doctor / what is the meaning of life /
is there a god / do you love me / will you marry me / who am i / what is love / i am bored /
what is [photosynthesis|gravity|inflation|democracy|evolution|a black hole|an atom|relativity|electricity|philosophy] /
explain [quantum physics|relativity|the stock market|evolution|history|religion|politics] /
how do i [lose weight|learn {language}|become rich|find a job|tie a tie|change a tire|fix a {thing}|draw a
{thing}|train a {animal}|feed a {animal}] / what does a {animal} [eat|say|look like] /
how [tall|old|heavy|fast] is [a|the] {thing} / how [tall|old] is {person} / when [did|was] {person} [die|born] /
what did {person} [do|write|say|invent] / [quote|paint|imitate] {person} / i am {person} /
what is the [price|weight|size|colour|origin|history] of [the |a |]{thing} / compare {thing}s and {thing}s /
{thing} or {thing} / name [three|five|ten] {thing}s / list [some|ten] {thing}s / draw [me |]a {thing} /
[buy|sell|find|send|bring|order|show] me a {thing} / turn [on|off] the {thing} / set an alarm for {number} /
remind me to {verb} / call {person} / play [music|a song|{word}] / open the {thing} / the {thing} is {adjective} /
my {thing} [is|was] {adjective} / why is my {thing} so {adjective} / is the {thing} {adjective} /
a {adjective} {thing} / [i think|maybe] the {thing} will {verb} / {person} will {verb} /
what is the [port|queue|model|root|key] of {place} / which {food} model is {adjective} / how do i start a {thing} /
how do i stop a {animal} / what is the default {thing} / which {thing}s are supported / serve me {food} /
can i load a {thing} / how do i use a {thing} / where is my {thing} / how large is a {thing} /
[list|show] all {thing}s / what does [a|the] {thing} do / what is a {thing} for / how do i change a {thing} /
stop the {thing}
"""
OFF_WORDS = {
    "place": """
        France Germany Italy Spain Japan China India Brazil Mexico Canada Egypt Kenya Norway Sweden Poland
        Greece Turkey Russia Australia Peru Chile Paris London Berlin Rome Madrid Tokyo Cairo Moscow Vienna
        Prague Lisbon Dublin Oslo Sydney Hamburg Munich Boston Chicago Texas California Africa Europe Asia
        Mars Venus Jupiter England Scotland Ireland Iceland""",
    "person": """
        Einstein Newton Mozart Beethoven Shakespeare Goethe Napoleon Caesar Cleopatra Gandhi Darwin Picasso
        Bach Plato Socrates Tesla Edison Galileo Columbus Lincoln Washington Churchill Kafka Tolstoy Homer
        Aristotle Kant Curie Turing Leonardo Michelangelo Rembrandt Chopin Dickens Austen Newton Alexander
        Anna Peter Maria John Mary Bob Alice Tom""",
    "food": """
        pizza pasta bread soup rice cake pancakes lasagna sushi curry salad cheese chocolate cookies
        potatoes apple banana tomato onion fish chicken beef omelette coffee tea beer wine juice butter
        honey noodles dumplings""",
    "animal": """
        dog cat horse cow elephant lion tiger bird fish snake rabbit mouse whale shark bear wolf spider bee
        penguin""",
    "language": """
        German French Spanish Italian Chinese Japanese Latin Greek Russian Polish Arabic Dutch Swedish Hindi""",
    "adjective": """
        red green blue big small old new cold hot warm slow quick happy sad broken beautiful ugly heavy
        light dark loud quiet strange clean dirty empty sweet sour round deep expensive cheap wet dry""",
    "verb": """
        run swim fly sleep sing dance cook read write paint build break open close carry wash drive ride
        climb jump fix grow plant cut draw sell buy steal throw catch hide find lose learn teach visit drink
        eat laugh cry smile fight win""",
    "thing": """
        car house tree river mountain ocean city road bridge train plane ship bicycle computer phone camera
        television radio book newspaper school teacher student doctor hospital lawyer judge king queen
        president army war peace law money bank market shop price tax company factory engine machine robot
        rocket satellite star planet moon sun cloud rain storm snow wind fire stone metal gold silver
        diamond glass paper plastic wood chair table door window wall garden flower rose grass forest island
        desert lake beach volcano earthquake dinosaur bone heart brain eye ear hand tooth blood disease
        virus vaccine medicine sport football tennis chess game music guitar piano violin song film movie
        actor painting museum church temple castle tower clock watch shoe hat shirt dress coat ring knife
        spoon bottle cup plate box bag ball toy doll family mother father brother sister child friend
        wedding birthday holiday dream story poem letter word number triangle circle equation theorem
        molecule atom electron energy magnet battery lamp mirror bell ladder hammer nail rope wheel pencil
        ticket passport hotel restaurant kitchen bathroom bed blanket pillow carpet candle umbrella calendar
        map compass""",
}

# What exchanges.json holds: questions of a conversation, of which the last one's answer is kept.
EXCHANGES = [
    ["Hello"],
    ["Who are you?"],
    ["What is Tensorgate?"],
    ["How do I start the server?"],
    ["Which model formats are supported?"],
    ["Can it serve ONNX models?"],
    ["Can it serve PyTorch models?"],
    ["What does --max-num-seqs do?"],
    ["What does --queue-size do?", "and its default?", "Thank you!"],
    ["What is --http-port?", "And in the environment?"],
    ["What does --turbo-mode do?"],
    ["What does 429 mean?"],
    ["How do I turn on TLS?"],
    ["Can I use the openai python client?"],
    ["What is the capital of France?"],
    ["Write me a poem about the sea", "What can you do?"],
]
