//! The same rules for layers that are to be trained: every one of them is a weight layer, so nothing
//! stays dense by its name. Not here: tensors of a checkpoint, which [`super::Plan`] decides about.

use super::{Keep, Pattern, Rules, Settings, matching};
use crate::Result;

impl Rules {
    /// What is said of each weight layer, given by the names of their weights in the order of the
    /// network; `keep` is [`Keep::Dense`] for those that stay in full precision.
    ///
    /// # Errors
    /// A pattern that is not valid.
    pub fn for_layers(&self, names: &[&str]) -> Result<Vec<Settings>> {
        let include = Pattern::all(&self.include)?;
        let exclude = Pattern::all(&self.exclude)?;
        let overrides = self.overrides.iter().map(|o| Ok((Pattern::new(&o.pattern)?, &o.settings)));
        let overrides = overrides.collect::<Result<Vec<_>>>()?;
        let decided = names.iter().enumerate().map(|(i, name)| {
            let mut settings = self.settings.clone();
            for (_, its) in overrides.iter().filter(|(pattern, _)| pattern.matcher.is_match(name)) {
                settings = (*its).clone().or(&settings);
            }
            let end = self.keep_first_last && (i == 0 || i + 1 == names.len());
            let out = end || !include.is_empty() && matching(&include, name).is_none();
            let keep = if out { Keep::Dense } else { Keep::Ternary };
            let excluded = matching(&exclude, name).is_some();
            settings.keep = Some(if excluded { Keep::Dense } else { settings.keep.unwrap_or(keep) });
            settings
        });
        Ok(decided.collect())
    }

    /// Patterns that none of the names matches.
    pub fn unused_patterns(&self, names: &[&str]) -> Result<Vec<String>> {
        let overrides = self.overrides.iter().map(|o| &o.pattern);
        let patterns = self.include.iter().chain(&self.exclude).chain(overrides).map(|text| Pattern::new(text));
        let patterns = patterns.collect::<Result<Vec<_>>>()?.into_iter();
        let unused = patterns.filter(|pattern| !names.iter().any(|name| pattern.matcher.is_match(name)));
        Ok(unused.map(|pattern| pattern.text).collect())
    }
}
