//! What a person sees while the story runs: one line per step, then its findings.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::Duration;
use tokio::time::Instant;

/// ANSI colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    coloured: bool,
}

impl Palette {
    /// Colours if standard output is a terminal and NO_COLOR is not set, or CLICOLOR_FORCE is.
    #[must_use]
    pub fn detect() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self { coloured: set("CLICOLOR_FORCE") || (!set("NO_COLOR") && stdout().is_terminal()) }
    }

    /// No colours.
    #[must_use]
    pub fn plain() -> Self {
        Self { coloured: false }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For what went well.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what failed.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For headings.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// For steps under way.
    #[must_use]
    pub fn cyan(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    /// For details.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// Prints the progress of the story.
pub struct Progress {
    palette: Palette,
    quiet: bool,
    steps: u32,
    step: u32,
    since: Instant,
}

impl Progress {
    /// For a story of `steps` steps; prints nothing if `quiet`.
    #[must_use]
    pub fn new(steps: u32, quiet: bool) -> Self {
        Self { palette: Palette::detect(), quiet, steps, step: 0, since: Instant::now() }
    }

    /// The colours in use.
    #[must_use]
    pub fn palette(&self) -> Palette {
        self.palette
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        self.since = Instant::now();
        let number = self.palette.cyan(&format!("[{}/{}]", self.step, self.steps));
        self.line(&format!("{number} {}", self.palette.bold(title)));
    }

    /// Something that happened within the step.
    pub fn detail(&self, text: &str) {
        let at = format!("{:>6.1} s", seconds(self.since.elapsed()));
        self.line(&format!("      {} {text}", self.palette.dim(&at)));
    }

    /// A check with its outcome.
    pub fn check(&self, passed: bool, text: &str) {
        let mark = if passed { self.palette.green("✔") } else { self.palette.red("✘") };
        self.line(&format!("           {mark} {text}"));
    }

    /// A line of its own.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            // Nobody reads: the story goes on.
            let _ = writeln!(stdout(), "{text}");
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
