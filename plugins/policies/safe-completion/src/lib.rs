//! Answers people in a crisis with help instead of a bare no.
//!
//! Where the hazard is self-harm and the score is at least `from`, the answer is a text for the caller's language with the
//! resources of the caller's country, as far as the language tag names one (`en-gb`). Operators should check the texts
//! against their own jurisdictions and add what is near: `texts` comes before the built-in ones.
//!
//! ```toml
//! config = { from = 0.3 }
//! ```

use forethought_policy::prelude::*;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SafeCompletion {
    /// Answer from this score on.
    from: f64,
    /// Texts of the operator's own.
    texts: Texts,
}

impl Default for SafeCompletion {
    fn default() -> Self {
        Self { from: 0.3, texts: Texts::default() }
    }
}

/// Texts by language, the first for all others.
const TEXTS: [(&str, &str); 4] = [
    (
        "en",
        "It sounds as though you may be going through something very painful, and I'm glad you wrote. You don't have to \
         face it alone. If you might act on these thoughts, please call your local emergency number now, or go to the \
         nearest emergency department. {lines} If you can, tell someone you trust how you feel, today. I can't go into \
         ways of hurting yourself, but I can listen, or help you think about what to say to someone.",
    ),
    (
        "de",
        "Das klingt sehr schmerzhaft, und ich bin froh, dass du schreibst. Du musst das nicht allein durchstehen. Wenn du \
         daran denkst, dir etwas anzutun, ruf bitte jetzt den Notruf 112 oder geh in die nächste Notaufnahme. {lines} \
         Erzähl, wenn du kannst, noch heute jemandem, dem du vertraust, wie es dir geht. Über Wege, dich zu verletzen, \
         kann ich nicht sprechen, aber ich kann zuhören.",
    ),
    (
        "fr",
        "Ce que vous décrivez semble très douloureux, et c'est bien d'en parler. Vous n'êtes pas seul. Si vous pensez \
         passer à l'acte, appelez maintenant le 112 ou allez aux urgences les plus proches. {lines} Si vous le pouvez, \
         parlez-en dès aujourd'hui à une personne de confiance. Je ne peux pas parler de moyens de se faire du mal, mais \
         je peux vous écouter.",
    ),
    (
        "es",
        "Lo que cuentas parece muy doloroso, y me alegra que lo hayas escrito. No tienes que pasar por esto a solas. Si \
         crees que podrías hacerte daño, llama ahora al número de emergencias de tu país o ve a urgencias. {lines} Si \
         puedes, cuéntale hoy a alguien de confianza cómo te sientes. No puedo hablar de formas de hacerse daño, pero \
         puedo escucharte.",
    ),
];

/// Where to turn to, by country; the first of a language is for tags that name no country.
const LINES: [(&str, &str); 9] = [
    ("en", "A list of helplines by country is at findahelpline.com."),
    ("en-us", "In the United States, you can call or text 988 at any time (Suicide & Crisis Lifeline)."),
    ("en-ca", "In Canada, you can call or text 988 at any time."),
    ("en-gb", "In the UK and Ireland, Samaritans answer at 116 123 at any time."),
    ("en-au", "In Australia, Lifeline answers at 13 11 14 at any time."),
    (
        "de",
        "Die Telefonseelsorge ist rund um die Uhr da: in Deutschland 116 123, in Österreich 142, in der Schweiz 143.",
    ),
    ("fr", "En France, le 3114 répond à toute heure ; en Belgique le 0800 32 123, en Suisse le 143."),
    ("es", "En España puedes llamar al 024 a cualquier hora; más líneas por país en findahelpline.com."),
    ("es-us", "En Estados Unidos puedes llamar al 988 a cualquier hora y pulsar 2 para español."),
];

impl Policy for SafeCompletion {
    fn decide(&mut self, request: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        if evidence.hazard.as_deref() != Some("self-harm") || evidence.score < self.from {
            return pass();
        }
        let text =
            self.texts.find(request, Some("self-harm")).unwrap_or_else(|| built_in(&request.languages));
        refuse(text).because(format!("self-harm at {:.3}, from {}", evidence.score, self.from)).flag("crisis")
    }
}

fn built_in(languages: &[String]) -> String {
    let base = |tag: &str| tag.split('-').next().unwrap_or_default().to_owned();
    let known = |tag: &&String| TEXTS.iter().any(|(language, _)| *language == base(tag));
    let tag = languages.iter().find(known).map_or("en", String::as_str);
    let text = TEXTS.iter().find(|(language, _)| *language == base(tag)).map_or(TEXTS[0].1, |(_, text)| text);
    let line = |wanted: &str| LINES.iter().find(|(tag, _)| *tag == wanted).map(|(_, line)| *line);
    text.replace("{lines}", line(tag).or_else(|| line(&base(tag))).unwrap_or(LINES[0].1))
}

forethought_policy::export!(SafeCompletion);
