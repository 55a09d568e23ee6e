//! Rules as TOML; what is wrong is said with its line. Not here: what rules mean ([`super`]).

use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

use super::{Override, Pattern, Rules, Settings};
use crate::ternarize;

/// What is wrong, and where: bytes of the text.
struct Wrong {
    at: Range<usize>,
    what: String,
}

impl Wrong {
    fn at(at: Range<usize>, what: impl ToString) -> Self {
        Self { at, what: what.to_string() }
    }

    /// Of TOML itself, or of a value within `at` that does not fit.
    fn toml(error: &toml::de::Error, at: Range<usize>) -> Self {
        Self { at: error.span().unwrap_or(at), what: super::settings::one_line(error) }
    }
}

/// What is wrong with a method and its factor.
pub(super) type Check<'a> = &'a dyn Fn(&str, Option<f64>) -> crate::Result<()>;

type Result<T> = std::result::Result<T, Wrong>;

/// Settings, `include`, `exclude`, `int8`, `keep-first-last`, and `[[override]]` tables.
///
/// # Errors
/// The line, and what is wrong there.
pub(super) fn parse(text: &str, check: Check<'_>) -> std::result::Result<Rules, String> {
    rules(text, check).map_err(|Wrong { at, what }| {
        let line = 1 + text.bytes().take(at.start).filter(|&byte| byte == b'\n').count();
        // serde names the value and not its key.
        let source = text.lines().nth(line - 1).unwrap_or_default().trim();
        match what.strip_prefix("invalid ") {
            Some(_) if source.len() < 80 => {
                format!("line {line}: {}, in `{source}`", what.replace("usize", "a whole number"))
            }
            _ => format!("line {line}: {what}"),
        }
    })
}

fn rules(text: &str, check: Check<'_>) -> Result<Rules> {
    let table = DeTable::parse(text).map_err(|e| Wrong::toml(&e, 0..0))?;
    let (whole, mut table) = (table.span(), table.into_inner());
    let mut rules = Rules {
        include: patterns(&mut table, "include")?,
        exclude: patterns(&mut table, "exclude")?,
        keep_first_last: take(&mut table, "keep-first-last")?.is_some_and(Spanned::into_inner),
        ..Rules::default()
    };
    let int8 = patterns(&mut table, "int8")?;
    rules.overrides.extend(int8.into_iter().map(Override::int8));
    if let Some(overrides) = table.remove("override") {
        let at = overrides.span();
        let DeValue::Array(overrides) = overrides.into_inner() else {
            return Err(Wrong::at(at, "overrides are tables, each under [[override]]"));
        };
        for table in overrides {
            rules.overrides.push(one_override(table, check)?);
        }
    }
    if let Some((key, _)) = table.get_key_value("keep") {
        return Err(Wrong::at(key.span(), "`keep` belongs into an [[override]]; see include and exclude"));
    }
    rules.settings = settings(table, whole, check).map_err(|Wrong { at, what }| {
        // What stood for other things is taken out already, and `keep` is none of these.
        let what = what.replace(
            "expected one of",
            "expected `include`, `exclude`, `int8`, `keep-first-last`, `override` or one of",
        );
        Wrong { at, what: what.replace(", `keep`", "") }
    })?;
    Ok(rules)
}

fn one_override(table: Spanned<DeValue<'_>>, check: Check<'_>) -> Result<Override> {
    let at = table.span();
    let DeValue::Table(mut table) = table.into_inner() else {
        return Err(Wrong::at(at, "overrides are tables, each under [[override]]"));
    };
    let pattern = take::<String>(&mut table, "match")?;
    let pattern = pattern.ok_or_else(|| Wrong::at(at.clone(), "an [[override]] needs `match = \"glob\"`"))?;
    let settings = settings(table, at.clone(), check)?;
    settings.check_keep().map_err(|what| Wrong::at(at, what))?;
    Ok(Override { pattern: checked(pattern)?, settings })
}

fn take<T: DeserializeOwned>(table: &mut DeTable<'_>, key: &str) -> Result<Option<Spanned<T>>> {
    let Some(value) = table.remove(key) else {
        return Ok(None);
    };
    let at = value.span();
    Spanned::deserialize(ValueDeserializer::from(value)).map(Some).map_err(|e| Wrong::toml(&e, at))
}

fn patterns(table: &mut DeTable<'_>, key: &str) -> Result<Vec<String>> {
    let patterns = take::<Vec<Spanned<String>>>(table, key)?;
    patterns.into_iter().flat_map(Spanned::into_inner).map(checked).collect()
}

/// A glob that compiles.
fn checked(pattern: Spanned<String>) -> Result<String> {
    let at = pattern.span();
    let text = pattern.into_inner();
    Pattern::new(&text).map_err(|e| Wrong::at(at, e))?;
    Ok(text)
}

fn settings(table: DeTable<'_>, at: Range<usize>, check: Check<'_>) -> Result<Settings> {
    let line_of = |key: &str| table.get(key).map(Spanned::span);
    let planes_at = line_of("planes").unwrap_or_else(|| at.clone());
    let method_at = line_of("factor").or_else(|| line_of("method")).unwrap_or_else(|| at.clone());
    let table = Deserializer::from(Spanned::new(at.clone(), table));
    let settings = Settings::deserialize(table).map_err(|e| Wrong::toml(&e, at))?;
    if let Some(planes) = settings.planes {
        super::settings::check_planes(planes).map_err(|e| Wrong::at(planes_at, e))?;
    }
    match (&settings.method, settings.factor) {
        (Some(method), factor) => check(method, factor).map_err(|e| Wrong::at(method_at, e))?,
        // For a method that is named elsewhere.
        (None, Some(factor)) => {
            let default = ternarize::METHODS[0].name;
            ternarize::method(default, Some(factor)).map_err(|e| Wrong::at(method_at, e))?;
        }
        (None, None) => {}
    }
    Ok(settings)
}
