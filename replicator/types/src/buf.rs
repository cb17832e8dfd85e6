//! Payload buffers: aligned for direct I/O, written once, then shared by every replica (R15).

use bytemuck::{Pod, Zeroable};
use core::cell::RefCell;
use core::fmt;
use core::ops::Range;
use std::sync::Arc;

/// Alignment unit: one logical block.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

const ZERO: Page = Page([0; 4096]);

/// At most this many bytes of free pages stay with a thread for reuse, so that steady I/O does
/// not allocate.
const FREE_LIMIT: usize = 32 << 20;

#[derive(Default)]
struct FreeList {
    bytes: usize,
    lists: Vec<Vec<Page>>,
}

thread_local! {
    static FREE: RefCell<FreeList> = RefCell::default();
}

struct Pages(Vec<Page>);

impl Pages {
    fn with_pages(pages: usize) -> Self {
        let class = pages.next_power_of_two();
        let reused = FREE
            .try_with(|free| {
                let mut free = free.borrow_mut();
                let at = free.lists.iter().rposition(|list| list.len() == class)?;
                free.bytes -= class * size_of::<Page>();
                Some(free.lists.swap_remove(at))
            })
            .ok()
            .flatten();
        Self(reused.unwrap_or_else(|| vec![ZERO; class]))
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let pages = core::mem::take(&mut self.0);
        let bytes = pages.len() * size_of::<Page>();
        // A failed access means that the thread is ending: then the pages are simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if bytes > 0 && free.bytes + bytes <= FREE_LIMIT {
                free.bytes += bytes;
                free.lists.push(pages);
            }
        });
    }
}

/// A buffer that is being filled: exclusive, 4096-aligned, its bytes unspecified until written.
pub struct BufMut {
    pages: Pages,
    len: usize,
}

impl BufMut {
    /// A buffer of `len` bytes with unspecified (old, but never foreign-process) content.
    #[must_use]
    pub fn with_len(len: usize) -> Self {
        Self { pages: Pages::with_pages(len.div_ceil(size_of::<Page>()).max(1)), len }
    }

    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_len(len);
        buf.as_mut_slice().fill(0);
        buf
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::with_len(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        buf
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.pages.bytes()[..self.len]
    }

    /// The bytes, to be filled.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.pages.bytes_mut()[..self.len]
    }

    /// Ends writing: from here on the bytes are shared and never change.
    #[must_use]
    pub fn freeze(self) -> Buf {
        let range = 0..self.len;
        Buf { pages: Arc::new(self.pages), range }
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

/// A shared, immutable byte range; cloning and slicing copy nothing. The start is 4096-aligned in
/// memory whenever the slice offset is a multiple of 4096.
#[derive(Clone)]
pub struct Buf {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl Buf {
    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        BufMut::copy_of(bytes).freeze()
    }

    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        BufMut::zeroed(len).freeze()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.pages.bytes()[self.range.clone()]
    }

    /// The bytes `range` of this buffer, shared.
    ///
    /// # Panics
    /// If `range` is out of bounds.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "slice out of bounds");
        Self {
            pages: Arc::clone(&self.pages),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Buf {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Buf {}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_slices_share() {
        for len in [1, 80, 4096, 5000, 1 << 20] {
            let mut buf = BufMut::zeroed(len);
            assert_eq!(buf.as_slice().as_ptr() as usize % 4096, 0);
            buf.as_mut_slice()[len - 1] = 7;
            let buf = buf.freeze();
            assert_eq!(buf.len(), len);
            assert_eq!(buf.slice(len - 1..len).as_slice(), [7]);
        }
    }

    #[test]
    fn a_reused_buffer_can_be_had_zeroed() {
        drop(BufMut::copy_of(&[9; 8192]));
        assert!(BufMut::zeroed(8192).as_slice().iter().all(|byte| *byte == 0));
    }
}
