//! A seed: several lives of one pool, and a cut after every step of each.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kit::Rng;
use kit::ids::{CLUSTER, POOL};
use store::{FormatOptions, PoolDisk};
use types::{BLOCK, Buf, BufMut};

use crate::check::{How, Observed, check};
use crate::cut::{Choice, Cut};
use crate::disk::{Disk, Lie, fill};
use crate::image::{Image, Step};
use crate::model::Model;
use crate::workload::{Taste, Work};

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Images at a moment that has too many; see [`Cut::choices`].
    pub samples: usize,
    /// Actions in a life, at most.
    pub actions: u64,
    /// Lives of the pool.
    pub lives: u8,
    /// Which promise the disk breaks.
    pub lie: Lie,
}

impl Plan {
    /// What `make test` and the command line use.
    pub const USUAL: Self = Self { samples: 6, actions: 400, lives: 3, lie: Lie::Honest };
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Images that were opened and compared.
    pub images: u64,
    /// Of them, those of a recovery that was cut again.
    pub recoveries: u64,
    /// Of them, those after the death of the process alone.
    pub kills: u64,
    /// Moments at which power was cut.
    pub prefixes: u64,
    /// Moments of which every subset was tried.
    pub exhaustive: u64,
    /// Checkpoints that the workload made.
    pub checkpoints: u64,
    /// What was lost, with all that it takes to see it again.
    pub losses: Vec<String>,
}

impl Tally {
    /// Adds another one's numbers.
    pub fn add(&mut self, other: Self) {
        self.images += other.images;
        self.recoveries += other.recoveries;
        self.kills += other.kills;
        self.prefixes += other.prefixes;
        self.exhaustive += other.exhaustive;
        self.checkpoints += other.checkpoints;
        self.losses.extend(other.losses);
    }
}

/// Bytes of the pool: the smallest there is.
const SIZE: u64 = 16 << 20;
/// A recovery is cut again in one of this many images.
const RECUT: u64 = 40;
/// Everything is read in one of this many images.
const READ_ALL: u64 = 32;

struct Cuts {
    seed: u64,
    life: u8,
    plan: Plan,
    rng: Rng,
    tally: Tally,
}

impl Cuts {
    fn how(&mut self, killed: bool) -> How {
        let all = self.rng.one_in(READ_ALL);
        let write = (all && self.rng.one_in(2)).then(|| self.rng.next());
        // A loss of power is a new boot of the host.
        How { boot: self.life + u8::from(!killed), killed, all, write }
    }

    /// Whether everything was found that should be there; a panic is a loss too.
    fn found(image: &mut Image<'_>, model: &Model, how: How) -> Result<Observed, String> {
        catch_unwind(AssertUnwindSafe(|| check(image, model, how))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            Err(format!("it panicked: {}", said.unwrap_or_default()))
        })
    }

    /// Power is lost, or the process dies, at this moment.
    fn at(&mut self, disk: &Disk, model: &Model) {
        if !self.tally.losses.is_empty() {
            return;
        }
        self.tally.prefixes += 1;
        let cut = Cut::new(&disk.pending, disk.data(), |block| disk.media[block as usize].clone());
        let choices = cut.choices(&mut self.rng, self.plan.samples);
        self.tally.exhaustive += u64::from(choices.len() as u64 == cut.images());
        for choice in &choices {
            let how = self.how(false);
            let image = image(disk, &cut, choice);
            if self.one(&image, model, how).is_err() {
                return self.explain(disk, &cut, choice, model, how);
            }
        }
        if self.rng.one_in(4) {
            self.kill(disk, model);
        }
    }

    /// Checks an image, and sometimes what a cut of its recovery makes of it.
    fn one(&mut self, image: &Image<'_>, model: &Model, how: How) -> Result<(), String> {
        self.tally.images += 1;
        let mut opened = image.clone();
        Self::found(&mut opened, model, how)?;
        if !self.rng.one_in(RECUT) {
            return Ok(());
        }
        self.recut(image, &opened.steps, model, how, 2)
    }

    /// Cuts the recovery that did `steps` to `image` at every step of its own.
    fn recut(
        &mut self,
        image: &Image<'_>,
        steps: &[Step],
        model: &Model,
        how: How,
        depth: u32,
    ) -> Result<(), String> {
        for count in 1..=steps.len() {
            let mut base = image.clone();
            let pending = base.replay(steps, count);
            let cut = Cut::new(&pending, u32::MAX, |block| base.get(block).cloned());
            for choice in cut.choices(&mut self.rng, 1) {
                let mut again = base.clone();
                cut.apply(&choice, |block, piece| again.put(block, piece));
                self.tally.images += 1;
                self.tally.recoveries += 1;
                let mut opened = again.clone();
                let all = self.rng.one_in(READ_ALL);
                let how = How { boot: how.boot + 1, killed: false, all, ..how };
                Self::found(&mut opened, model, how).map_err(|what| {
                    let kept = cut.describe(&choice);
                    format!("{what}; a recovery was cut after {count} steps, keeping {kept}")
                })?;
                if depth > 0 && self.rng.one_in(32) {
                    self.recut(&again, &opened.steps, model, how, depth - 1)?;
                }
            }
        }
        Ok(())
    }

    /// The process dies; of what it had submitted all, nothing or some lands (R12).
    fn kill(&mut self, disk: &Disk, model: &Model) {
        let mut over = BTreeMap::new();
        let odds = self.rng.below(3);
        let lands: BTreeMap<u64, bool> =
            disk.in_flight().into_iter().map(|write| (write, self.rng.below(2) < odds)).collect();
        for (block, versions) in &disk.pending {
            for version in versions {
                if lands.get(&version.write).is_some_and(|lands| *lands) {
                    over.insert(*block, version.piece.clone());
                }
            }
        }
        let how = self.how(true);
        let mut image = Image::new(disk.view(), over);
        self.tally.images += 1;
        self.tally.kills += 1;
        if let Err(what) = Self::found(&mut image, model, how) {
            let (seed, life, prefix) = (self.seed, self.life, self.tally.prefixes);
            self.tally.losses.push(format!(
                "seed {seed}, life {life}, prefix {prefix}, the process killed: {what}"
            ));
        }
    }

    /// Finds the fewest sectors that lose something, and says so.
    fn explain(&mut self, disk: &Disk, cut: &Cut, choice: &Choice, model: &Model, how: How) {
        let how = How { all: true, ..how };
        let fails = |choice: &Choice| Self::found(&mut image(disk, cut, choice), model, how);
        let fewest = cut.shrink(choice, |choice| fails(choice).is_err());
        let what =
            fails(&fewest).err().unwrap_or_else(|| "only a cut recovery loses it".to_owned());
        let (seed, life, prefix) = (self.seed, self.life, self.tally.prefixes);
        let (kept, sectors) = (cut.describe(&fewest), Cut::kept(&fewest));
        self.tally.losses.push(format!(
            "seed {seed}, life {life}, prefix {prefix}, {sectors} sectors kept {kept}: {what}"
        ));
    }
}

fn image<'a>(disk: &'a Disk, cut: &Cut, choice: &Choice) -> Image<'a> {
    let mut over = BTreeMap::new();
    cut.apply(choice, |block, piece| {
        over.insert(block, piece);
    });
    Image::new(&disk.media, over)
}

/// The disk as opening sees it: each of its operations is a moment too.
struct Recovering<'a, 'b> {
    disk: &'a mut Disk,
    model: &'a Model,
    cuts: &'b mut Cuts,
}

impl PoolDisk for Recovering<'_, '_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        fill(buf, offset, |block| self.disk.view()[block as usize].as_ref());
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32> {
        let write = self.disk.submit(offset, data.len() as u64, Some(data));
        self.disk.complete(write, false);
        self.cuts.at(self.disk, self.model);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), i32> {
        self.disk.synced(self.disk.mark());
        self.cuts.at(self.disk, self.model);
        Ok(())
    }
}

/// A formatted pool.
///
/// # Panics
/// It cannot be formatted.
#[must_use]
pub fn formatted(slot_size: u64) -> Disk {
    let blank = vec![None; (SIZE / BLOCK) as usize];
    let mut image = Image::new(&blank, BTreeMap::new());
    let options = FormatOptions { cluster: CLUSTER, pool: POOL, slot_size, force: false };
    if let Err(error) = store::format(&mut image, &options) {
        panic!("{error}");
    }
    Disk::of(image.flatten(), Lie::Honest)
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, plan: Plan) -> Tally {
    let mut rng = Rng::new(seed);
    let slot_size = [64 << 10, 256 << 10, 1 << 20][rng.index(3)];
    let taste = Taste { no_zero: rng.one_in(5), likes: rng.below(4), haste: 1 + rng.below(6) };
    let tally = Tally::default();
    let mut cuts = Cuts { seed, life: 1, plan, rng: rng.fork(), tally };
    let mut media = formatted(slot_size).media;
    let mut model = Model::default();
    while cuts.life <= plan.lives {
        let mut disk = Disk::of(media, plan.lie);
        let boot = cuts.life;
        let mut recovering = Recovering { disk: &mut disk, model: &model, cuts: &mut cuts };
        let store = match store::open(&mut recovering, &Work::options(boot)) {
            Ok(store) => store,
            Err(error) => {
                cuts.tally.losses.push(format!("seed {seed}, life {boot}: {error}"));
                return cuts.tally;
            }
        };
        let mut work = Work::new(disk, store, model, rng.fork(), taste);
        let actions = plan.actions / 4 + work.rng.below(plan.actions * 3 / 4);
        for action in 0..actions {
            work.act(&mut |disk, model| cuts.at(disk, model));
            if let Some(what) = work.stuck() {
                cuts.tally.losses.push(format!("seed {seed}, life {boot}: {what}"));
            }
            if !cuts.tally.losses.is_empty() {
                return cuts.tally;
            }
            if action + 1 < actions && work.rng.one_in(150) {
                let reopened = work.restart(|disk, model| {
                    let mut recovering = Recovering { disk, model, cuts: &mut cuts };
                    store::open(&mut recovering, &Work::options(boot))
                });
                if let Err(error) = reopened {
                    cuts.tally.losses.push(format!("seed {seed}, life {boot}, killed: {error}"));
                    return cuts.tally;
                }
            }
        }
        cuts.tally.checkpoints += work.checkpoints();
        // Power is lost for good, and the next life begins with what is left.
        let Work { disk, model: lost, .. } = work;
        let cut = Cut::new(&disk.pending, disk.data(), |block| disk.media[block as usize].clone());
        let choice = cut.sample(&mut cuts.rng);
        let left = image(&disk, &cut, &choice);
        media = left.flatten();
        let how = How { boot: boot + 1, killed: false, all: true, write: None };
        match Cuts::found(&mut left.clone(), &lost, how) {
            Ok(found) => {
                model = lost;
                model.settle(&found);
            }
            Err(_) => {
                cuts.explain(&disk, &cut, &choice, &lost, how);
                return cuts.tally;
            }
        }
        cuts.life += 1;
    }
    cuts.tally
}
