//! Values under small dense keys that are never reused.

/// Index in the low 32 bits, generation of that index above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() as u32 - 1
        });
        let (generation, entry) = &mut self.entries[index as usize];
        *generation = generation.wrapping_add(1);
        *entry = Some(value);
        Key(u64::from(*generation) << 32 | u64::from(index))
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (generation, entry) = self.entries.get(key.0 as u32 as usize)?;
        entry.as_ref().filter(|_| u64::from(*generation) == key.0 >> 32)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, entry) = self.entries.get_mut(key.0 as u32 as usize)?;
        entry.as_mut().filter(|_| u64::from(*generation) == key.0 >> 32)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, entry) = self.entries.get_mut(key.0 as u32 as usize)?;
        if u64::from(*generation) != key.0 >> 32 {
            return None;
        }
        let value = entry.take()?;
        self.free.push(key.0 as u32);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().zip(0u64..).filter_map(|((generation, entry), index)| {
            Some((Key(u64::from(*generation) << 32 | index), entry.as_ref()?))
        })
    }
}
