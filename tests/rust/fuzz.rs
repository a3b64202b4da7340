//! Every fuzz target over its corpus and some thousand inputs made from it, the same in every run.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

use std::fs;
use std::path::Path;

use vxlan_fuzz::{Target, TARGETS};

const MUTATIONS_PER_TARGET: u32 = 5_000;

/// Inputs of a target, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read(path).unwrap())
        .collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Some changes of the kinds that find bugs in parsers: bits, edge values, cuts, copies, splices.
fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    const EDGES: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, 0x40];
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 | 2 if at < bytes.len() => bytes[at] = EDGES[random.below(EDGES.len())],
            3 if at < bytes.len() => bytes[at] = random.next() as u8,
            4 => bytes.truncate(at),
            5 => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
                bytes.truncate(4096);
            }
            6 => {
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len())..]);
            }
            // The first bytes hold most of the headers.
            _ if !bytes.is_empty() => {
                let at = random.below(bytes.len().min(64));
                bytes[at] = random.next() as u8;
            }
            _ => {}
        }
    }
    bytes
}

fn run(name: &str, target: Target) {
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "no corpus for {name}");
    corpus.iter().for_each(|input| target(input));
    let mut random = Random(0x5eed);
    for _ in 0..MUTATIONS_PER_TARGET {
        let input = &corpus[random.below(corpus.len())];
        let other = &corpus[random.below(corpus.len())];
        let input = mutate(input, other, &mut random);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("{name} fails on {input:02x?}");
        }
    }
}

#[test]
fn targets_hold_on_their_corpus_and_its_mutations() {
    for (name, target) in TARGETS {
        run(name, *target);
    }
}

#[test]
fn targets_hold_on_nothing_and_on_short_inputs() {
    for (_, target) in TARGETS {
        for len in 0..64 {
            target(&vec![0; len]);
            target(&vec![0xff; len]);
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            TARGETS.iter().any(|(target, _)| name == *target),
            "{name:?}"
        );
    }
}
