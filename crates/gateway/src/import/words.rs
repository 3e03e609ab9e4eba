//! A name and the words after it: what a line of HAProxy's configuration is, and a directive of nginx's.

/// Something that is words.
pub(super) trait Worded {
    /// All, the name first.
    fn words(&self) -> &[String];

    /// The first.
    fn name(&self) -> &str {
        self.words().first().map_or("", String::as_str)
    }

    /// The words after the name.
    fn args(&self) -> &[String] {
        self.words().get(1..).unwrap_or_default()
    }

    /// The n-th word after the name, or nothing.
    fn arg(&self, at: usize) -> &str {
        self.args().get(at).map_or("", String::as_str)
    }
}
