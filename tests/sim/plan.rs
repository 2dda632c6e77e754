//! What one seed is about: how large the cluster is, how bad its network, disks and clocks are.

use quipu::raft::Durability;

use crate::rng::Rng;

/// Sets the draws of damage apart. The seeds that have a test of their own have none of it.
const DAMAGE_SALT: u64 = 0xEB;

/// Everything that is drawn before a simulation starts. Each seed has its own mix: some faults
/// never happen in it and others all the time.
#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: u64,
    pub groups: u64,
    pub durability: Durability,
    /// How long faults go on, in milliseconds.
    pub faults_ms: u64,
    /// Messages lost and doubled, in a thousand.
    pub lost: u64,
    pub doubled: u64,
    /// Frames with a flipped bit, in a thousand.
    pub damaged: u64,
    /// Frames beside which something is sent that nobody should believe, in a thousand.
    pub hostile: u64,
    /// Longest ordinary delay of a message in microseconds; one in fifty takes twenty times that.
    pub delay_us: u64,
    /// Longest ordinary sync in microseconds.
    pub sync_us: u64,
    /// Mean time between faults in milliseconds.
    pub fault_every_ms: u64,
    /// Which faults there are, and how often, relative to each other.
    pub weights: Vec<(Mischief, u64)>,
    pub clients: u64,
    /// Mean time between two requests of a client, in milliseconds.
    pub think_ms: u64,
    pub payload_max: u64,
    /// Mean time between two reads in milliseconds.
    pub read_every_ms: u64,
    pub retention_bytes: Option<u64>,
    /// In the end a minority of the nodes stays down, and the others must go on.
    pub is_core: bool,
    /// Longest time that most faults last, in milliseconds.
    pub fault_ms_max: u64,
}

/// A fault, or something that an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mischief {
    Crash,
    PowerCut,
    PowerCutOfAll,
    Partition,
    OneWayCut,
    Pause,
    SlowDisk,
    FullDisk,
    FailedSync,
    Wipe,
    Change,
    Transfer,
    Retention,
    Damage,
    DamageOfAll,
}

impl Mischief {
    pub const COUNT: usize = 15;
    /// Those that are drawn first. What came later is drawn last, so that older seeds stay as they
    /// were.
    const FIRST: [Self; Self::COUNT - 2] = [
        Self::Crash,
        Self::PowerCut,
        Self::PowerCutOfAll,
        Self::Partition,
        Self::OneWayCut,
        Self::Pause,
        Self::SlowDisk,
        Self::FullDisk,
        Self::FailedSync,
        Self::Wipe,
        Self::Change,
        Self::Transfer,
        Self::Retention,
    ];
}

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut weight = |fault: Mischief| {
            let weight = match rng.below(3) {
                0 => 0,
                1 => rng.between(1, 4),
                _ => rng.between(4, 12),
            };
            (fault, weight)
        };
        let mut weights = Mischief::FIRST.map(&mut weight);
        let durability = if rng.chance(900) { Durability::Fsync } else { Durability::Memory };
        if durability == Durability::Memory {
            // When a quorum forgets what it agreed on in the middle of a change, nobody can tell
            // any more who votes: that takes an operator.
            let is_change = |mischief| matches!(mischief, Mischief::Change | Mischief::Wipe);
            weights = weights.map(|(m, weight)| (m, if is_change(m) { 0 } else { weight }));
        }
        let is_calm = rng.chance(250);
        let mut up_to = |max: u64| if is_calm { 0 } else { rng.below(max + 1) };
        let (lost, doubled, damaged) = (up_to(150), up_to(150), up_to(10));
        let hostile = if rng.chance(500) { rng.between(1, 30) } else { 0 };
        let mut plan = Self {
            nodes: if rng.chance(300) { 5 } else { 3 },
            groups: rng.between(1, 4),
            durability,
            faults_ms: rng.between(4_000, 12_000),
            lost,
            doubled,
            damaged,
            hostile,
            delay_us: *rng.pick(&[300, 2_000, 20_000]).expect("a choice"),
            sync_us: *rng.pick(&[500, 3_000, 60_000]).expect("a choice"),
            fault_every_ms: rng.between(150, 1_200),
            weights: weights.into(),
            clients: rng.between(2, 6),
            think_ms: rng.between(5, 60),
            payload_max: *rng.pick(&[40, 400, 3_000]).expect("a choice"),
            read_every_ms: rng.between(5, 60),
            retention_bytes: rng.chance(500).then(|| rng.between(8, 40) * 1024),
            is_core: rng.chance(350),
            fault_ms_max: 2_000,
        };
        if rng.chance(120) {
            plan.make_stormy(&mut rng);
        }
        plan.add_damage(&mut Rng::new(seed ^ DAMAGE_SALT));
        plan
    }

    /// Lets disks decay in some of the runs, and in some of them much.
    fn add_damage(&mut self, rng: &mut Rng) {
        let is_asked = rng.chance(400) && self.durability == Durability::Fsync;
        let weight_max = if rng.chance(300) { 30 } else { 6 };
        let weight = rng.between(1, weight_max);
        let of_all = rng.between(0, 2);
        if is_asked {
            self.weights.extend([(Mischief::Damage, weight), (Mischief::DamageOfAll, of_all)]);
        }
    }

    /// True if bytes on a disk may change in this run.
    pub fn damages(&self) -> bool {
        self.weights.iter().any(|(mischief, _)| *mischief == Mischief::Damage)
    }

    /// Power cuts and elections follow one another so fast that disks hardly keep up: what was sent
    /// too early comes to light.
    fn make_stormy(&mut self, rng: &mut Rng) {
        self.fault_every_ms = rng.between(20, 120);
        self.fault_ms_max = 150;
        self.sync_us = 60_000;
        self.faults_ms = 4_000;
        for (fault, weight) in &mut self.weights {
            *weight = match fault {
                Mischief::PowerCut => 12,
                Mischief::Crash | Mischief::Transfer => 4,
                Mischief::PowerCutOfAll | Mischief::SlowDisk => 2,
                Mischief::Change => (*weight).min(2),
                _ => 0,
            };
        }
    }

    pub fn draw_fault(&self, rng: &mut Rng) -> Option<Mischief> {
        let total: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            return None;
        }
        let mut at = rng.below(total);
        self.weights.iter().find_map(|(fault, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it.then_some(*fault)
        })
    }
}
