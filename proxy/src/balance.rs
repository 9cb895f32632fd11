//! Which endpoint a call goes to.

/// Picks the less loaded of two endpoints drawn at random, leaving out those already tried, and those that rest as long as
/// there are others. `loads` holds one figure for each endpoint; `random` is any number, fresh for each pick. Two choices
/// come close to the best one and never herd all callers onto it (Mitzenmacher, 2001).
pub fn pick(loads: &[usize], tried: &[usize], resting: &[usize], random: u64) -> Option<usize> {
    let untried = || (0..loads.len()).filter(|at| !tried.contains(at));
    // `resting` is in order.
    let mut free: Vec<usize> = untried().filter(|at| resting.binary_search(at).is_err()).collect();
    if free.is_empty() {
        free = untried().collect();
    }
    match free.as_slice() {
        [] => None,
        [only] => Some(*only),
        several => {
            let count = several.len() as u64;
            let first = (random & 0xffff_ffff) % count;
            let step = 1 + (random >> 32) % (count - 1);
            let second = (first + step) % count;
            let (first, second) = (several[first as usize], several[second as usize]);
            Some(if loads[second] < loads[first] { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks() {
        assert_eq!(pick(&[], &[], &[], 1), None);
        assert_eq!(pick(&[5], &[], &[], 1), Some(0));
        assert_eq!(pick(&[5], &[0], &[], 1), None);
        for random in (0..64).map(|n| n * 0x1234_5678_9abc_u64) {
            assert_eq!(pick(&[9, 1], &[], &[], random), Some(1), "the less loaded of two");
            assert_eq!(pick(&[9, 1, 1], &[1, 2], &[], random), Some(0));
            assert_ne!(pick(&[9, 1, 9], &[1], &[], random), Some(1));
            assert_eq!(pick(&[9, 1, 1], &[], &[1, 2], random), Some(0), "who rests is not asked");
            assert_eq!(pick(&[9, 1, 1], &[0], &[1], random), Some(2));
            assert_eq!(pick(&[9, 1], &[0], &[1], random), Some(1), "unless nobody else is left");
            assert_eq!(pick(&[9, 1], &[], &[0, 1], random), Some(1));
        }
    }
}
