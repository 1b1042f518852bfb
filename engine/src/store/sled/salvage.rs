//! What can be read of a store that is damaged.
//!
//! sled reads rows in leaves, and a leaf that is damaged ends every walk over the rows that comes to it. So the
//! rows are walked through from both ends; then, between the two places where that ended, from half way in both
//! directions, and so on. What is found is all but the damaged leaves, unless there are so many of them that
//! the number of walks is used up first.
//!
//! Rows that belong together may be told apart by this: `store check` names them in what was made of it.

use sled::IVec;
use std::collections::VecDeque;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many walks are begun: enough for hundreds of damaged leaves.
const WALKS_MAX: usize = 1_024;
/// How much of two keys counts when half way between them is looked for, beyond what they have in common.
const HALVED_BYTES: usize = 16;

/// Takes a row.
type Each<'a, E> = dyn FnMut(Vec<u8>, IVec) -> Result<(), E> + 'a;

/// A part of the keys.
struct Gap {
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
}

impl Gap {
    /// Two halves; none where there is nothing between its ends that could be told apart.
    fn halves(&self) -> Option<[Self; 2]> {
        let middle = half_way(key_of(&self.from), key_of(&self.to))?;
        let lower = Self {
            from: self.from.clone(),
            to: Bound::Excluded(middle.clone()),
        };
        let upper = Self {
            from: Bound::Included(middle),
            to: self.to.clone(),
        };
        Some([lower, upper])
    }
}

/// Gives every row that can be read, in no order; returns how many places there are of which nothing can be read.
pub(super) fn each_readable<E>(db: &sled::Db, each: &mut Each<'_, E>) -> Result<u64, E> {
    let mut gaps = VecDeque::from([Gap {
        from: Bound::Unbounded,
        to: Bound::Unbounded,
    }]);
    let (mut walks, mut unreadable) = (0, Vec::new());
    while let Some(mut gap) = gaps.pop_front() {
        walks += 2;
        let (reached, whole) = walk(db, &gap, false, each)?;
        if whole {
            continue;
        }
        gap.from = reached.map_or(gap.from, Bound::Excluded);
        let (reached, whole) = walk(db, &gap, true, each)?;
        if whole {
            // It was not there a moment ago, and is now.
            continue;
        }
        gap.to = reached.map_or(gap.to, Bound::Excluded);
        let halves = (walks < WALKS_MAX).then(|| gap.halves()).flatten();
        match halves {
            Some(halves) => gaps.extend(halves),
            None => unreadable.push(gap),
        }
    }
    Ok(places(unreadable))
}

/// How many places these are: halves of one gap between which no row was read are one.
fn places(mut gaps: Vec<Gap>) -> u64 {
    gaps.sort_by(|one, other| key_of(&one.from).cmp(&key_of(&other.from)));
    let ends = gaps.windows(2).filter(|pair| {
        let goes_on = matches!(pair[1].from, Bound::Included(_));
        !(goes_on && key_of(&pair[0].to) == key_of(&pair[1].from))
    });
    ends.count() as u64 + u64::from(!gaps.is_empty())
}

/// Walks through a gap until it ends or cannot be read: the last key that was reached, and whether it ended.
fn walk<E>(
    db: &sled::Db,
    gap: &Gap,
    back: bool,
    each: &mut Each<'_, E>,
) -> Result<(Option<Vec<u8>>, bool), E> {
    let mut rows = db.range::<Vec<u8>, _>((gap.from.clone(), gap.to.clone()));
    let mut reached = None;
    loop {
        // sled panics on some kinds of damage.
        let next = catch_unwind(AssertUnwindSafe(|| match back {
            true => rows.next_back(),
            false => rows.next(),
        }));
        match next {
            Ok(None) => return Ok((reached, true)),
            Ok(Some(Ok((key, value)))) => {
                each(key.to_vec(), value)?;
                reached = Some(key.to_vec());
            }
            Ok(Some(Err(_))) | Err(_) => return Ok((reached, false)),
        }
    }
}

fn key_of(bound: &Bound<Vec<u8>>) -> Option<&[u8]> {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key),
        Bound::Unbounded => None,
    }
}

/// A key about half way between two.
fn half_way(low: Option<&[u8]>, high: Option<&[u8]>) -> Option<Vec<u8>> {
    let (low, high) = (low.unwrap_or(&[]), high.unwrap_or(&[0xff]));
    let common = low.iter().zip(high).take_while(|(one, other)| one == other);
    let common = common.count();
    let number = |key: &[u8]| {
        let mut bytes = [0; HALVED_BYTES];
        for (place, byte) in bytes.iter_mut().zip(&key[common..]) {
            *place = *byte;
        }
        u128::from_be_bytes(bytes)
    };
    let (first, last) = (number(low), number(high));
    let middle = first + last.checked_sub(first)? / 2;
    (middle > first).then(|| [&low[..common], &middle.to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_way_is_between() {
        let between = |low: &[u8], high: Option<&[u8]>| {
            let middle = half_way(Some(low), high).unwrap();
            assert!(low < &middle[..] && high.is_none_or(|high| &middle[..] < high));
        };
        between(b"", None);
        between(b"abc", Some(b"abd"));
        between(b"ab", Some(b"abc"));
        between(b"e\xff\xff", None);
        assert_eq!(half_way(Some(b"abc"), Some(b"abc")), None);
        assert_eq!(half_way(Some(b"ab"), Some(b"ab\0")), None);
        assert!(half_way(None, None).is_some());
    }
}
