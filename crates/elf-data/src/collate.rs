//! Rows of ids to a rectangular batch.

use serde::{Deserialize, Serialize};

use crate::coins::Coins;
use crate::error::{Error, Result};
use crate::example::Example;
use crate::tokenizer::Tokenizer;

/// The token that fills a row up, and thereby whether the filling carries loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PadToken {
    /// `<pad>`; filled positions carry no loss.
    #[default]
    Pad,
    /// `</s>`; filled positions carry loss, so that the model learns to end a text.
    Eos,
}

/// The shape of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollateConfig {
    /// Sequence length S in tokens; longer rows are cut, shorter ones filled up.
    pub max_length: usize,
    /// For conditional tasks: the longest condition in tokens; longer ones are cut. `None` ignores conditions.
    #[serde(default)]
    pub max_input_length: Option<usize>,
    /// The token that fills a row up.
    #[serde(default)]
    pub pad_token: PadToken,
}

impl CollateConfig {
    /// Lengths of a condition and of its target after both are cut to fit one row.
    pub(crate) fn cut(&self, condition: usize, target: usize) -> (usize, usize) {
        let condition = self.max_input_length.map_or(0, |most| condition.min(most));
        (condition, target.min(self.max_length.saturating_sub(condition)))
    }
}

/// Makes batches of examples.
#[derive(Clone, Debug)]
pub struct Collator {
    config: CollateConfig,
    fill_id: i64,
}

impl Collator {
    /// A collator that fills with `tokenizer`'s id of `config.pad_token`.
    ///
    /// # Errors
    /// If lengths contradict one another, or the tokenizer lacks the token.
    pub fn new(config: CollateConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let fill = match config.pad_token {
            PadToken::Pad => tokenizer.pad_id()?,
            PadToken::Eos => tokenizer.eos_id()?,
        };
        Self::with_fill_id(config, fill)
    }

    /// A collator that fills with `fill_id`. `config.pad_token` then only decides whether filled positions carry loss.
    ///
    /// # Errors
    /// If lengths contradict one another.
    pub fn with_fill_id(config: CollateConfig, fill_id: i32) -> Result<Self> {
        if config.max_length == 0 {
            return Err(Error::Config("max_length must be at least 1".to_owned()));
        }
        if let Some(input) = config.max_input_length {
            if input >= config.max_length {
                return Err(Error::Config(format!(
                    "max_input_length ({input}) must be below max_length ({}): the condition and its target share one sequence, and nothing would be left for the target",
                    config.max_length
                )));
            }
            if input == 0 {
                return Err(Error::Config(
                    "max_input_length must be at least 1; leave it out for unconditional training".to_owned(),
                ));
            }
        }
        Ok(Self { config, fill_id: i64::from(fill_id) })
    }

    /// The settings.
    pub fn config(&self) -> CollateConfig {
        self.config
    }

    /// The id that fills rows up.
    pub fn fill_id(&self) -> i64 {
        self.fill_id
    }

    /// A batch `[B, S]` with one row per example: `condition[..max_input_length] ++ target`, cut or filled up to `max_length`.
    /// No label is dropped; set [`Batch::label_drop`] for that.
    ///
    /// # Errors
    /// If `max_input_length` is set and an example has no condition.
    pub fn collate(&self, examples: &[Example]) -> Result<Batch> {
        let seq_len = self.config.max_length;
        let mut batch = Batch {
            rows: examples.len(),
            seq_len,
            input_ids: Vec::with_capacity(examples.len() * seq_len),
            cond_len: Vec::with_capacity(examples.len()),
            valid_len: Vec::with_capacity(examples.len()),
            given: Vec::new(),
            label_drop: vec![false; examples.len()],
            pad_token: self.config.pad_token,
        };
        for (row, example) in examples.iter().enumerate() {
            let condition = example.condition_ids.as_deref();
            if self.config.max_input_length.is_some() && condition.is_none() {
                return Err(Error::NoCondition);
            }
            let condition = condition.unwrap_or_default();
            let (most, most_target) = self.config.cut(condition.len(), example.input_ids.len());
            let (condition, target) = (&condition[..most], &example.input_ids[..most_target]);
            batch.input_ids.extend(condition.iter().chain(target).map(|&id| i64::from(id)));
            batch.input_ids.resize((row + 1) * seq_len, self.fill_id);
            batch.cond_len.push(condition.len());
            batch.valid_len.push(condition.len() + target.len());
        }
        Ok(batch)
    }
}

/// A rectangular batch of `B = rows` rows and `S = seq_len` positions.
///
/// Each row is a condition, then the target, then filling, so that two lengths per row determine all masks unless tokens of the target
/// are given. Devices build theirs from the lengths; the methods build masks on the host, row-major, 1 for yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// B.
    pub rows: usize,
    /// S.
    pub seq_len: usize,
    /// Token ids, `[B, S]`.
    pub input_ids: Vec<i64>,
    /// Length of each row's condition in tokens, `[B]`; 0 without one.
    pub cond_len: Vec<usize>,
    /// Length of each row in tokens without its filling, condition included, `[B]`.
    pub valid_len: Vec<usize>,
    /// Whether a token of the target is given, as those of the condition are, `[B, S]`; empty if none is.
    pub given: Vec<bool>,
    /// Whether a row's condition is dropped in this training step, `[B]`.
    pub label_drop: Vec<bool>,
    /// The token of the filling, which decides whether it carries loss.
    pub pad_token: PadToken,
}

impl Batch {
    /// 1 where a position is not filling, `[B, S]`. Decided by length, not by token: the EOS of a text is valid even if rows are
    /// filled with EOS. (`attention_mask` in the released code.)
    pub fn is_valid(&self) -> Vec<f32> {
        self.mask(|row, position| position < self.valid_len[row])
    }

    /// Whether any row has a condition, or given tokens.
    pub fn has_conditions(&self) -> bool {
        self.cond_len.iter().any(|&n| n > 0) || self.given.contains(&true)
    }

    /// 1 where a position belongs to the condition, or is given, `[B, S]`. (`cond_seq_mask` in the released code.)
    pub fn is_cond(&self) -> Vec<f32> {
        self.mask(|row, position| self.is_given(row, position))
    }

    fn is_given(&self, row: usize, position: usize) -> bool {
        position < self.cond_len[row] || self.given.get(row * self.seq_len + position).is_some_and(|&given| given)
    }

    /// 1 where a position carries loss, `[B, S]`: the target that is not given, and the filling if it is EOS.
    pub fn loss_mask(&self) -> Vec<f32> {
        self.mask(|row, position| {
            !self.is_given(row, position) && (self.pad_token == PadToken::Eos || position < self.valid_len[row])
        })
    }

    /// The batch without the positions that are filling in every row, provided that filling carries no loss. Works in place.
    ///
    /// Results of models in which no token sees later ones do not change. Other models would see rows of other lengths than those
    /// they were trained on.
    #[must_use]
    pub fn trimmed(self) -> Self {
        let longest = self.valid_len.iter().copied().max().unwrap_or(0).max(1);
        if self.pad_token == PadToken::Eos { self } else { self.cut_to(longest) }
    }

    /// The batch without the positions from `length` on, which have to be filling in every row. Works in place.
    #[must_use]
    pub fn cut_to(mut self, length: usize) -> Self {
        if length >= self.seq_len {
            return self;
        }
        for row in 1..self.rows {
            let from = row * self.seq_len;
            self.input_ids.copy_within(from..from + length, row * length);
            if !self.given.is_empty() {
                self.given.copy_within(from..from + length, row * length);
            }
        }
        self.input_ids.truncate(self.rows * length);
        self.given.truncate(self.rows * length);
        self.seq_len = length;
        self
    }

    /// The batch for a model that writes from left to right and fills gaps: a row is its condition and its text, with `mark` in place of the
    /// tokens that are not given, and then those tokens, in order. All but the latter is its condition. Rows become twice as long; `mark`
    /// fills them up. (A form of fill in the middle, Bavarian et al. 2022, arXiv 2207.14255, for several gaps of known lengths.)
    #[must_use]
    pub fn with_gaps_last(&self, mark: i64) -> Self {
        let mut batch =
            Self { input_ids: Vec::with_capacity(2 * self.input_ids.len()), given: Vec::new(), ..self.clone() };
        batch.seq_len = 2 * self.seq_len;
        for row in 0..self.rows {
            let known = |place: &usize| self.is_given(row, *place);
            let id = |place: usize| self.input_ids[row * self.seq_len + place];
            let text = 0..self.valid_len[row];
            batch.input_ids.extend(text.clone().map(|place| if known(&place) { id(place) } else { mark }));
            batch.input_ids.extend(text.clone().filter(|place| !known(place)).map(id));
            batch.cond_len[row] = text.len();
            batch.valid_len[row] = batch.input_ids.len() - row * batch.seq_len;
            batch.input_ids.resize((row + 1) * batch.seq_len, mark);
        }
        batch
    }

    /// The rows at these places, in their order.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let s = self.seq_len;
        // Nothing of an empty list.
        let of_row = |row: usize| self.given.get(row * s..(row + 1) * s).unwrap_or_default();
        Self {
            rows: rows.len(),
            seq_len: s,
            input_ids: rows.iter().flat_map(|&row| &self.input_ids[row * s..(row + 1) * s]).copied().collect(),
            given: rows.iter().flat_map(|&row| of_row(row)).copied().collect(),
            cond_len: rows.iter().map(|&row| self.cond_len[row]).collect(),
            valid_len: rows.iter().map(|&row| self.valid_len[row]).collect(),
            label_drop: match self.label_drop.is_empty() {
                true => Vec::new(),
                false => rows.iter().map(|&row| self.label_drop[row]).collect(),
            },
            pad_token: self.pad_token,
        }
    }

    /// Number of ids that are not filling.
    pub fn tokens(&self) -> usize {
        self.valid_len.iter().sum()
    }

    fn mask(&self, yes: impl Fn(usize, usize) -> bool) -> Vec<f32> {
        let cells = (0..self.rows).flat_map(|row| (0..self.seq_len).map(move |position| (row, position)));
        cells.map(|(row, position)| f32::from(yes(row, position))).collect()
    }
}

/// Whether the row at `position` of the global order of `epoch` has its label dropped, with probability `prob`.
///
/// The result depends on the arguments alone, so that resuming a run, or another number of ranks, changes no decision.
pub fn is_label_dropped(prob: f64, seed: u64, epoch: u64, position: u64) -> bool {
    Coins::new(b"elf label drop", &[seed, epoch, position]).uniform() < prob
}
