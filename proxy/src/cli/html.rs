//! What all pages need.

/// Text of others made fit for a page. What can't be seen, or changes the direction of what can, is shown as its code.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                safe.extend(c.escape_unicode());
            }
            c if c.is_control() => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_others_is_markup() {
        fn check(text: &str, expected: &str) {
            assert_eq!(escape(text), expected);
        }
        check("<script>&'\"", "&lt;script&gt;&amp;&#39;&quot;");
        check("a\u{202e}b\0\u{1b}", "a\\u{202e}b\\u{0}\\u{1b}");
        check("tab\tline\n\u{e9}", "tab\tline\n\u{e9}");
    }
}
