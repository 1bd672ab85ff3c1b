//! Looks after what may be stuck in a driver, from where nothing brings it back. It asks no driver itself. Looks are
//! counted, and no time is measured: a process that was stopped for a while has hung in nothing.

use super::generator::OVERDUE;
use crate::{process, threads};
use backends::Format;
use backends::llm::LanguageOptions;
use backends::llm::device::{self, Choice};
use backends::llm::progress::Calls;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often something is looked at before it is taken to hang.
const LOOKS: u32 = 20;
/// The longest time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Tells what goes on from what hangs.
pub(super) struct Looks<T> {
    longest: Duration,
    pause: Duration,
    watched: Option<T>,
    since: Duration,
}

impl<T: PartialEq> Looks<T> {
    /// What takes `longest` hangs.
    pub(super) fn new(longest: Duration) -> Self {
        let pause = (longest / LOOKS).clamp(Duration::from_millis(1), LOOK);
        Looks { longest, pause, watched: None, since: Duration::ZERO }
    }

    /// Waits until it is time for the next look.
    pub(super) fn pause(&self) {
        std::thread::sleep(self.pause);
    }

    /// A look: what is under way now. Does it hang?
    pub(super) fn hangs(&mut self, now: Option<T>) -> bool {
        self.since = if now.is_some() && now == self.watched { self.since + self.pause } else { Duration::ZERO };
        self.watched = now;
        self.since >= self.longest
    }
}

/// Watches the loading of a model, until it is dropped.
#[derive(Debug)]
pub struct Loading {
    _loads: Arc<()>,
}

impl Loading {
    /// Watches a model that may be computed on a GPU. A call has more time than a step: in one of them a driver may
    /// translate all kernels.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn of(model: &str, format: Format, options: &LanguageOptions) -> Result<Option<Self>, String> {
        let longest = options.step_timeout.filter(|_| matches!(format, Format::HuggingFace | Format::Gguf));
        let watch = |longest: Duration| {
            Loading::watch(format!("while model '{model}' was loaded"), &options.calls, longest.max(OVERDUE))
        };
        longest.map(watch).transpose()
    }

    /// Asks for GPUs; a driver that does not answer is told from one that is slow, unless `step_timeout` is zero.
    ///
    /// # Errors
    /// Those of [`device::announce`], and the system gives no thread.
    pub fn announce(choice: Choice, step_timeout: Duration) -> Result<Option<String>, String> {
        // Nobody is asked, or nobody watches.
        if choice == Choice::Cpu || !cfg!(feature = "cuda") || step_timeout.is_zero() {
            return device::announce(choice);
        }
        let calls = Calls::default();
        let _watch = Loading::watch("while the server looked for GPUs".into(), &calls, step_timeout.max(OVERDUE))?;
        calls.during(|| device::announce(choice))
    }

    /// Where one of the `calls` that a device is given takes longer than `longest`, it hangs and does not come back:
    /// the process ends with [`process::HUNG`], and its log says `when` that was.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn watch(when: String, calls: &Calls, longest: Duration) -> Result<Self, String> {
        let loads = Arc::new(());
        let (calls, still) = (calls.clone(), Arc::downgrade(&loads));
        threads::spawn("load-watch", move || watch(&when, &calls, longest, &still))?;
        Ok(Loading { _loads: loads })
    }
}

/// Until the model is loaded, or its device hangs.
fn watch(when: &str, calls: &Calls, longest: Duration, still: &Weak<()>) {
    let mut looks = Looks::new(longest);
    while still.strong_count() > 0 {
        looks.pause();
        if looks.hangs(calls.under_way()) {
            let what = format!("{when}, a call of its driver took longer than {longest:?}");
            process::give_up(process::HUNG, &format!("the device of a language model hangs: {what}"));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_the_same_hangs() {
        let mut looks = Looks::new(Duration::from_secs(10));
        assert!(!(0..100).any(|_| looks.hangs(None)), "nothing is under way");
        assert!(!(0..100).any(|at| looks.hangs(Some(at))), "it goes on");
        // After the first look, 20 of half a second.
        assert!(!(0..20).any(|_| looks.hangs(Some(7))));
        assert!(looks.hangs(Some(7)));
        assert!(!looks.hangs(Some(8)));
    }
}
