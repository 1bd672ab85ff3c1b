"""The parts of a run. Each can be run alone, and says what it found as soon as it did.

A stage is a module with three functions:

* `run(options, folder)` yields what it has found so far, more each time
* `tables(result)` makes Markdown of that, whole or not
* `targets(result)` compares it with what was to be reached, as far as it goes
"""
