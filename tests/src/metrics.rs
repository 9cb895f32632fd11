//! One reading of a `/metrics` page.

use std::collections::BTreeMap;

/// Every sample by its full name, labels included, as it stands on the page.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads a page.
    pub fn parse(page: &str) -> Self {
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| {
                    let (name, value) = line.rsplit_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                })
                .collect(),
        )
    }

    /// A sample's value, by its full name: `postern_tls_refusals_total{reason="expired"}`. A sample that is not there is
    /// a panic, not a zero: a renamed metric must not pass for a quiet one.
    pub fn value(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| {
            let near: Vec<&String> =
                self.0.keys().filter(|key| key.starts_with(name.split('{').next().unwrap_or(name))).collect();
            panic!("no sample {name}; of its family there are {near:?}")
        })
    }

    /// The same for counters that first appear with their first event.
    pub fn value_or_zero(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// The sum of a family, whatever the labels.
    pub fn sum(&self, family: &str) -> f64 {
        let of_family = |name: &str| name.split('{').next() == Some(family);
        self.0.iter().filter(|(name, _)| of_family(name)).map(|(_, value)| value).sum()
    }

    /// All samples.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let page = "# TYPE a counter\na_total{reason=\"x y\"} 3\na_total{reason=\"z\"} 4\nb 1.5\n# EOF\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.value("a_total{reason=\"x y\"}"), 3.0);
        assert_eq!((metrics.sum("a_total"), metrics.value("b")), (7.0, 1.5));
        assert_eq!(metrics.value_or_zero("c"), 0.0);
    }
}
