//! Numbers on the command line: a negative one is a value and no option, and what is no number is refused with what fits.

use std::any::TypeId;
use std::fmt::Display;
use std::str::FromStr;

use clap::{Arg, Command};

/// A command all of whose options, and those of its subcommands, take numbers in this way.
pub fn understood_by(command: Command) -> Command {
    command.mut_args(of_option).mut_subcommands(understood_by)
}

fn of_option(arg: Arg) -> Arg {
    let kind = arg.get_value_parser().type_id();
    if kind == TypeId::of::<f64>() {
        return arg.allow_negative_numbers(true).value_parser(finite);
    }
    if kind == TypeId::of::<usize>() {
        return arg.allow_negative_numbers(true).value_parser(|text: &str| whole(text, 0, usize::MAX));
    }
    if kind == TypeId::of::<u64>() {
        return arg.allow_negative_numbers(true).value_parser(|text: &str| whole(text, 0, u64::MAX));
    }
    if kind == TypeId::of::<i64>() {
        return arg.allow_negative_numbers(true).value_parser(|text: &str| whole(text, i64::MIN, i64::MAX));
    }
    arg
}

fn finite(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("it must be a number".to_owned()),
    }
}

fn whole<T: FromStr + Display>(text: &str, least: T, most: T) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("it must be a whole number from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_refused_with_what_fits() {
        for text in ["-1", " 2.5", "1e-3", "0"] {
            assert!(finite(text).is_ok(), "{text}");
        }
        for text in ["NaN", "inf", "-inf", "1e400", "many", "", "1,5"] {
            assert_eq!(finite(text).unwrap_err(), "it must be a number");
        }
        assert_eq!((whole("7", 0, usize::MAX), whole("-7", i64::MIN, i64::MAX)), (Ok(7), Ok(-7)));
        for text in ["-1", "1.5", "1e3", "18446744073709551616", "two", ""] {
            assert_eq!(
                whole(text, 0, u64::MAX).unwrap_err(),
                "it must be a whole number from 0 to 18446744073709551615"
            );
        }
    }
}
