//! OpenAI's API: completions, chats and the list of models.

mod answer;
mod finished;
mod handlers;
mod prompt;
mod stream;

pub use handlers::{IGNORED, chat, completions, ignored, model, models};
pub use prompt::{prompts, requests};
