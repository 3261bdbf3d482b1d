"""The language of a text, told by its script and, where languages share a script, by their most frequent words.

IFEval asks for whole responses in one language. A response of a few sentences is told apart by this reliably; a text in
which no known word occurs has no language that could be named.
"""

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "BENGALI": ("bn",),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "KANNADA": ("kn",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "MALAYALAM": ("ml",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh",),
    "GREEK": ("el",),
    "HEBREW": ("he",),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "ARABIC": ("ar", "fa", "ur"),
    "CYRILLIC": ("ru", "bg", "uk", "mk"),
    "LATIN": ("en", "de", "fr", "es", "pt", "it", "nl", "fi", "sv", "sw", "vi", "pl", "tr", "id"),
}
"""The languages that are written in each script, by the first word of its characters' names in Unicode."""
_WORDS = {
    "en": "the and of to is that for with you are this have be from your not as it on",
    "de": "der die das und ist nicht ein eine ich zu den mit sie von auf für dem im wir es auch sich",
    "fr": "le les des et est une pour dans que qui vous nous je pas sur avec au ce plus du",
    "es": "el los las y es una para que con por no se del su lo como más en al un",
    "pt": "o os as e é uma para que com por não se do da em um mais como ao você seu",
    "it": "il gli e è una per che con di non si del della le un la sono nel più lo",
    "nl": "de het een en van is dat niet voor met op te zijn ik je die aan er",
    "fi": "ja on ei että se hän olen ovat mutta kun niin minä sinä tämä joka ole myös kuin",
    "sv": "och är att det en som för inte på med jag av till den har ett om vi",
    "sw": "na ya wa kwa ni za katika la hii kuwa cha yake hiyo wao sana pia au kama ili kila",
    "vi": "và là của có không một những được trong cho với các người này để khi đã tôi bạn",
    "pl": "i w na z nie jest że się do to jak ale za od po przez są który być",
    "tr": "ve bir bu için ile da de çok ben sen ama olarak daha gibi ne var değil olan",
    "id": "dan yang di untuk dengan adalah ini itu tidak dari pada saya anda akan dalam ke bisa juga",
    "hi": "है के में की और से का को हैं यह नहीं पर एक लिए कि भी मैं आप हम था",
    "mr": "आहे आणि मध्ये च्या ला नाही हे तो ती आपण आहेत मी एक साठी होते या ही ते असे",
    "ne": "छ र को मा लाई हो यो छन् गर्न पनि एक भएको हुन् त्यो म तपाईं लागि छैन हामी थियो",
    "ar": "في من على إلى أن هذا التي الذي هو هي مع كان لا ما عن هذه ذلك لم أو كل",
    "fa": "و در به از که این را با است برای آن یک می ما های شما کند تا بود خود",
    "ur": "کے میں کی اور ہے سے کا کو ہیں یہ نہیں پر ایک کہ بھی آپ ہم تھا لیے وہ",
    "ru": "и в не на что с это как он она по для но они мы вы из от бы то",
    "bg": "и в на не се да за е от с това като по са ще си до който но при",
    "uk": "і в не на що з це як він вона по для але вони ми ви із від та у",
    "mk": "и во на не се да за е од со тоа како по се ќе си до кој но при",
}
_FREQUENT = {language: frozenset(words.split()) for language, words in _WORDS.items()}


def may_be(text: str, language: str) -> bool:
    """Whether a text may be in a language: it is the detected one, or none is and the script is the language's."""
    languages = _of_script(text)
    return detect(text) == language if detect(text) is not None else language in languages or not languages


def detect(text: str) -> str | None:
    """The ISO 639-1 code of the language that most of a text is in; None where it cannot be told."""
    candidates = _of_script(text)
    if len(candidates) <= 1:
        return next(iter(candidates), None)
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0300-\u036f\u0900-\u0963]+[^\W\d_]*)*", text.lower()))
    hits = {language: sum(words[word] for word in _FREQUENT[language]) for language in candidates}
    best = max(candidates, key=hits.__getitem__)
    return best if hits[best] else None


def _of_script(text: str) -> tuple[str, ...]:
    """The languages of the script that most of a text is in."""
    scripts: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            scripts[unicodedata.name(character, "unknown").split()[0]] += 1
    # Japanese mixes its own scripts with Chinese characters, and Chinese has none of the former
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * scripts["CJK"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0)
    return _SCRIPTS.get(max(scripts, key=scripts.__getitem__, default="unknown"), ())
