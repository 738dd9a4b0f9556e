//! How far a command is that takes long: a line on standard error, kept up to date by a thread of
//! its own while the command blocks the one that gave it.
//!
//! A library for this would have to be told to write where there is no terminal, and brings more
//! code than the one line takes.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::cli::When;
use crate::number::amount;
use crate::report::Failure;

/// What is quicker than this is not worth a line.
const FIRST: Duration = Duration::from_millis(500);
/// How often a line on a terminal is replaced.
const EVERY: Duration = Duration::from_millis(200);
/// How often another line is written elsewhere.
const EVERY_LINE: Duration = Duration::from_secs(2);

/// How far a command is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// So many are done.
    pub(crate) done: u64,
    /// Of so many.
    pub(crate) total: u64,
}

/// Looks at how far a command is. None while it has not begun, or is through.
///
/// Errors: the node's. It is then not asked again, since every refusal is remembered by it.
pub(crate) type Look<'a> = dyn Fn() -> Result<Option<Work>, Errno> + Sync + 'a;

/// Whether and how the progress of a subcommand is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    title: &'static str,
    style: Style,
    /// A line at the end, also when it was quick.
    ends: bool,
    first: Duration,
    every: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Silent,
    /// One line that is replaced.
    Terminal,
    /// A line each time.
    Lines,
}

impl Watch {
    /// As the command line says.
    pub(crate) fn new(title: &'static str, when: When, json: bool) -> Watch {
        let style = style(when, json, std::io::stderr().is_terminal());
        let every = if style == Style::Terminal { EVERY } else { EVERY_LINE };
        Watch { title, style, ends: when == When::Always, first: FIRST, every }
    }

    /// Does `work` and shows how far it is.
    pub(crate) fn during<T>(
        &self,
        work: impl FnOnce() -> Result<T, Failure>,
        look: &Look<'_>,
    ) -> Result<T, Failure> {
        if self.style == Style::Silent {
            return work();
        }
        let began = Instant::now();
        let result = thread::scope(|scope| {
            let (end, ended) = channel::<()>();
            let tell = move || self.tell(&ended, look, &mut std::io::stderr());
            // Without a thread there is no line, and the work is done all the same.
            let _ = thread::Builder::new().spawn_scoped(scope, tell);
            let result = work();
            drop(end);
            result
        });
        if self.ends && result.is_ok() {
            eprintln!("ioasidctl: {}: done in {:.1} s", self.title, began.elapsed().as_secs_f64());
        }
        result
    }

    fn tell(&self, ended: &Receiver<()>, look: &Look<'_>, out: &mut impl Write) {
        let began = Instant::now();
        let mut speed = Speed::default();
        let mut shown = false;
        let mut wait = self.first;
        while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            let Ok(work) = look() else { break };
            let rate = speed.at(began.elapsed(), work);
            if let Some(work) = work {
                let line = line(self.title, work, rate);
                // Whoever has closed standard error does not want to know.
                let _ = match self.style {
                    Style::Terminal => write!(out, "\r{line}\x1b[K").and_then(|()| out.flush()),
                    Style::Lines | Style::Silent => writeln!(out, "{line}"),
                };
                shown = true;
            }
            wait = self.every;
        }
        if shown && self.style == Style::Terminal {
            let _ = write!(out, "\r\x1b[K").and_then(|()| out.flush());
        }
    }
}

fn style(when: When, json: bool, terminal: bool) -> Style {
    match (when, terminal) {
        (When::Never, _) | (When::Auto, false) => Style::Silent,
        (When::Auto, true) if json => Style::Silent,
        (_, true) => Style::Terminal,
        (When::Always, false) => Style::Lines,
    }
}

/// Bytes per second since work began, which is later than the command if that has to wait.
#[derive(Debug, Default)]
struct Speed {
    idle_until: Duration,
}

impl Speed {
    fn at(&mut self, now: Duration, work: Option<Work>) -> u64 {
        let Some(work) = work else {
            self.idle_until = now;
            return 0;
        };
        let seconds = (now - self.idle_until).as_secs_f64();
        if seconds > 0.0 { (work.done as f64 / seconds) as u64 } else { 0 }
    }
}

fn line(title: &str, work: Work, rate: u64) -> String {
    let Work { done, total } = work;
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let (done, total, rate) = (amount(done), amount(total), amount(rate));
    format!("ioasidctl: {title}: {done} of {total} ({percent}%), {rate}/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_line_says_how_much_is_done_and_how_fast() {
        let work = Work { done: 3 * GIB, total: 8 * GIB };
        assert_eq!(line("map", work, GIB), "ioasidctl: map: 3.0 GiB of 8.0 GiB (37%), 1.0 GiB/s");
        let all = Work { done: u64::MAX, total: u64::MAX };
        assert!(line("map", all, 0).contains("(100%)"));
    }

    #[test]
    fn waiting_for_a_turn_does_not_count_as_slowness() {
        let mut speed = Speed::default();
        let work = |done| Some(Work { done, total: 8 * GIB });
        assert_eq!(speed.at(Duration::from_secs(9), None), 0);
        assert_eq!(speed.at(Duration::from_secs(10), work(GIB)), GIB);
        assert_eq!(speed.at(Duration::from_secs(11), work(4 * GIB)), 2 * GIB);
        assert_eq!(Speed::default().at(Duration::ZERO, work(1)), 0);
    }

    #[test]
    fn it_is_shown_on_a_terminal_or_where_it_was_asked_for() {
        for (when, json, terminal, expected) in [
            (When::Auto, false, true, Style::Terminal),
            (When::Auto, false, false, Style::Silent),
            (When::Auto, true, true, Style::Silent),
            (When::Always, true, true, Style::Terminal),
            (When::Always, false, false, Style::Lines),
            (When::Never, false, true, Style::Silent),
        ] {
            assert_eq!(style(when, json, terminal), expected, "{when:?} {json} {terminal}");
        }
    }

    /// What is written while a command takes as long as four looks, of which the second finds
    /// nothing and the last is refused if `refuses`.
    fn told(style: Style, refuses: bool) -> String {
        let soon = Duration::from_millis(1);
        let watch = Watch { title: "map", style, ends: false, first: soon, every: soon };
        let (end, ended) = channel();
        let end = std::sync::Mutex::new(Some(end));
        let looks = AtomicU64::new(0);
        let look = || match looks.fetch_add(1, Ordering::Relaxed) {
            1 => Ok(None),
            3 if refuses => Err(Errno::NODEV),
            3 => {
                end.lock().unwrap().take();
                Ok(Some(Work { done: 4096, total: 4096 }))
            }
            look => Ok(Some(Work { done: look * 1024, total: 4096 })),
        };
        let mut out = Vec::new();
        watch.tell(&ended, &look, &mut out);
        assert_eq!(looks.into_inner(), 4);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn on_a_terminal_the_line_is_replaced_and_taken_away() {
        let text = told(Style::Terminal, false);
        assert_eq!(text.matches("\rioasidctl: map: ").count(), 3, "{text:?}");
        assert!(text.contains("4.0 KiB of 4.0 KiB (100%)"), "{text:?}");
        assert!(text.ends_with("\r\x1b[K") && !text.contains('\n'), "{text:?}");
    }

    #[test]
    fn elsewhere_each_look_is_a_line() {
        let text = told(Style::Lines, false);
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert!(!text.contains(['\r', '\x1b']), "{text:?}");
        assert_eq!(told(Style::Lines, true).lines().count(), 2);
    }

    #[test]
    fn what_is_quick_is_not_told_of() {
        let (end, ended) = channel();
        drop(end);
        let watch = Watch { style: Style::Terminal, ..Watch::new("map", When::Never, false) };
        let mut out = Vec::new();
        watch.tell(&ended, &|| panic!("it was looked at"), &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn the_result_of_the_work_is_passed_on() {
        let watch = Watch::new("map", When::Auto, true);
        assert_eq!(watch.during(|| Ok(5), &|| Ok(None)).unwrap(), 5);
        let shown = Watch { style: Style::Lines, ..watch };
        assert_eq!(shown.during(|| Ok(6), &|| Ok(None)).unwrap(), 6);
        let refused = shown.during(|| Err::<(), _>(Failure::Usage("no".into())), &|| Ok(None));
        assert_eq!(refused.unwrap_err().to_string(), "no");
    }
}
