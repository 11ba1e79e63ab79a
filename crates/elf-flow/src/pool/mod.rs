//! Runs that share the passes of their networks: each is written as if it were alone, and may begin and end at any time.

mod call;
mod shared_network;

use std::panic::{AssertUnwindSafe, catch_unwind};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use elf_core::Network;

use self::call::{Call, CallKind, Panic, Reply};
pub use self::shared_network::SharedNetwork;

/// Bytes of a run's stack, as a program's main thread has. Memory is taken as it is used.
const STACK: usize = 8 << 20;

/// The number of a run within its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(u64);

/// Where a run gets its networks from.
pub struct Shared<'r, 'a> {
    yielder: &'r Yielder<Option<Reply>, Call<'a>>,
}

impl<'r, 'a> Shared<'r, 'a> {
    /// A network whose passes the run shares with other runs of the pool that use it at the same time.
    pub fn network(&self, net: &'a dyn Network) -> SharedNetwork<'r, 'a> {
        SharedNetwork::new(net, self.yielder)
    }
}

/// A run between two passes.
struct Run<'a, T> {
    id: RunId,
    routine: Coroutine<Option<Reply>, Call<'a>, T>,
    state: RunState<'a>,
}

enum RunState<'a> {
    /// It can go on. Before the first call there is no reply.
    Ready(Option<Reply>),
    /// It waits for a call since the pass of this number.
    Waiting(u64, Call<'a>),
}

/// Runs that share the passes of their networks.
///
/// Each run has a stack of its own and stops where it calls a [`SharedNetwork`]. When all have stopped, calls of one kind (the same
/// network, positions and inputs) are computed in one pass, in which each row has its own time, and each run goes on with its rows. So
/// generators, samplers and fields need not know of one another, and a run that is added joins the others in the next pass.
///
/// ```
/// # use elf_flow::RunPool;
/// let mut pool = RunPool::new(None);
/// let id = pool.add(|_| 1 + 1)?;
/// let step = pool.step();
/// assert_eq!(step.finished.len(), 1);
/// assert_eq!((step.finished[0].0, step.finished[0].1.as_ref().ok()), (id, Some(&2)));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RunPool<'a, T> {
    runs: Vec<Run<'a, T>>,
    /// Calls of every pass, where all passes have one shape.
    fill: Option<usize>,
    added: u64,
    passes: u64,
}

impl<T> std::fmt::Debug for RunPool<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("RunPool").field("runs", &self.runs.len()).field("fill", &self.fill).finish_non_exhaustive()
    }
}

/// What a step brought.
#[derive(Debug)]
pub struct PoolStep<T> {
    /// The runs that have ended, with their results, or with what they panicked with.
    pub finished: Vec<(RunId, Result<T, Panic>)>,
    /// Rows of the step's pass, those that fill it up not counted; 0 if no run waited for one.
    pub rows: usize,
}

impl<'a, T: 'a> RunPool<'a, T> {
    /// An empty pool. With `fill`, all calls of a pass have equal shapes, and passes are filled up to so many calls: what a run
    /// computes then depends on no other run, not even in rounding.
    pub fn new(fill: Option<usize>) -> Self {
        Self { runs: Vec::new(), fill: fill.map(|calls| calls.max(1)), added: 0, passes: 0 }
    }

    /// The number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds a run, which begins in the next step.
    ///
    /// # Errors
    /// If the system has no memory for its stack.
    pub fn add(&mut self, run: impl FnOnce(&Shared<'_, 'a>) -> T + 'a) -> std::io::Result<RunId> {
        let body = move |yielder: &Yielder<Option<Reply>, Call<'a>>, _: Option<Reply>| run(&Shared { yielder });
        // SAFETY: what the run borrows is valid for 'a. The routine lives in this pool, whose type has 'a, and runs only in its
        // methods and when it is dropped.
        let routine = unsafe { Coroutine::with_stack_unchecked(DefaultStack::new(STACK)?, body) };
        let id = RunId(self.added);
        self.added += 1;
        self.runs.push(Run { id, routine, state: RunState::Ready(None) });
        Ok(id)
    }

    /// Ends a run, if it is there, without a result.
    pub fn cancel(&mut self, id: RunId) {
        self.runs.retain(|run| run.id != id);
    }

    /// Makes the pass that runs have been waiting for longest, and lets them go on to their next. No gradients are recorded.
    pub fn step(&mut self) -> PoolStep<T> {
        tch::no_grad(|| {
            let mut finished = Vec::new();
            self.settle(&mut finished);
            let rows = self.pass();
            self.settle(&mut finished);
            PoolStep { finished, rows }
        })
    }

    /// Lets all runs go on until each waits for a pass of the trunk, with the calls on the way, which are cheaper.
    fn settle(&mut self, finished: &mut Vec<(RunId, Result<T, Panic>)>) {
        loop {
            self.resume(finished);
            let heads: Vec<usize> = self.waiting(|call| !call.is_trunk()).map(|(place, _)| place).collect();
            if heads.is_empty() {
                return;
            }
            let mut left = heads;
            while let Some(&first) = left.first() {
                let (same, others) = self.of_kind_of(first, left);
                self.compute(&same);
                left = others;
            }
        }
    }

    /// Lets runs that have a reply go on to their next call or their end.
    fn resume(&mut self, finished: &mut Vec<(RunId, Result<T, Panic>)>) {
        let passes = self.passes;
        self.runs.retain_mut(|run| {
            let RunState::Ready(reply) = &mut run.state else { return true };
            let reply = reply.take();
            match catch_unwind(AssertUnwindSafe(|| run.routine.resume(reply))) {
                Ok(CoroutineResult::Yield(call)) => {
                    run.state = RunState::Waiting(passes, call);
                    true
                }
                Ok(CoroutineResult::Return(result)) => {
                    finished.push((run.id, Ok(result)));
                    false
                }
                Err(panic) => {
                    finished.push((run.id, Err(panic)));
                    false
                }
            }
        });
    }

    /// The runs that wait for calls that `wanted` picks: place, and since when.
    fn waiting(&self, wanted: impl Fn(&Call<'a>) -> bool) -> impl Iterator<Item = (usize, u64)> {
        self.runs.iter().enumerate().filter_map(move |(place, run)| match &run.state {
            RunState::Waiting(since, call) if wanted(call) => Some((place, *since)),
            _ => None,
        })
    }

    fn call(&self, place: usize) -> Option<&Call<'a>> {
        match &self.runs[place].state {
            RunState::Waiting(_, call) => Some(call),
            RunState::Ready(_) => None,
        }
    }

    /// Splits runs into those whose call is of the kind of that of `first`, and others.
    fn of_kind_of(&self, first: usize, all: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
        let kind = |place: usize| self.call(place).map(|call| call.kind(self.fill.is_some()));
        let wanted: Option<CallKind> = kind(first);
        all.into_iter().partition(|&place| kind(place) == wanted)
    }

    /// Computes the oldest call of the trunk with all of its kind. Returns its rows.
    fn pass(&mut self) -> usize {
        let waiting: Vec<(usize, u64)> = self.waiting(Call::is_trunk).collect();
        let Some(&(oldest, _)) = waiting.iter().min_by_key(|(_, since)| *since) else { return 0 };
        let (same, _) = self.of_kind_of(oldest, waiting.iter().map(|&(place, _)| place).collect());
        let rows = same.iter().filter_map(|&place| self.call(place)).map(|call| call.rows() as usize).sum();
        self.passes += 1;
        self.compute(&same);
        rows
    }

    /// Computes the calls of these runs, all of one kind, with as few passes as possible.
    fn compute(&mut self, places: &[usize]) {
        let mut left = places;
        while !left.is_empty() {
            let calls: Vec<&Call> = left.iter().filter_map(|&place| self.call(place)).collect();
            let replies = self.computed(&calls[..self.together(&calls)]);
            let (now, later) = left.split_at(replies.len().max(1));
            for (&place, reply) in now.iter().zip(replies) {
                self.runs[place].state = RunState::Ready(Some(reply));
            }
            left = later;
        }
    }

    /// How many of these calls are computed at once.
    fn together(&self, calls: &[&Call]) -> usize {
        let mut rows = 0;
        let fitting = calls.iter().take_while(|call| {
            rows += call.rows();
            rows <= call.room()
        });
        fitting.count().max(1).min(self.fill.unwrap_or(usize::MAX))
    }

    /// The results of calls, computed at once; if that fails, one after another, so that each has its own.
    fn computed(&self, calls: &[&Call]) -> Vec<Reply> {
        let mut filled = calls.to_vec();
        if let (Some(fill), Some(&first)) = (self.fill, calls.first()) {
            let most = (first.room() / first.rows().max(1)).clamp(1, fill as i64) as usize;
            filled.resize(most.max(calls.len()), first);
        }
        match catch_unwind(AssertUnwindSafe(|| Call::compute(&filled))) {
            Ok(Ok(results)) => results.into_iter().take(calls.len()).map(|result| Ok(Ok(result))).collect(),
            Ok(Err(error)) if calls.len() == 1 => vec![Ok(Err(error))],
            Err(panic) if calls.len() == 1 => vec![Err(panic)],
            _ => calls.iter().flat_map(|call| self.computed(&[call])).collect(),
        }
    }
}
