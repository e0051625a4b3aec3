"""Measures of plain text: words, overlap, degeneration, cut endings, near-duplicates.

Pure functions of strings. The same input gives the same output on every machine; no model, no language data.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set

# Scripts written without spaces: each character counts as a word.
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A lone surrogate cannot be written at all; a lone carriage return writes over the line on a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]|\r(?!\n)")
HALF = "\ufffd"  # What the first bytes of a character are read as where the others are missing
_WORD = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])[^\W_])+(?:'(?:(?![{_SPACELESS}])[^\W_])+)*")

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of `text` in order, case-folded, without punctuation."""
    folded = unicodedata.normalize("NFC", text.replace("’", "'")).casefold()
    return _WORD.findall(folded)


def word_ngrams(text: str, n: int) -> set[Ngram]:
    """The distinct runs of `n` words; empty when the text has fewer."""
    return _ngrams(words(text), n)


def _ngrams(sequence: Sequence[str], n: int) -> set[Ngram]:
    return {tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)}


def half_a_character(text: str) -> bool:
    """Whether it holds half of a surrogate pair: JSON may escape one, and no UTF-8 file can hold it."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def without_controls(text: str) -> str:
    """The text with its control characters replaced: a terminal would obey them, and HTML has none."""
    return _CONTROL.sub(HALF, text)


def jaccard(a: Set[object], b: Set[object]) -> float:
    """Size of the intersection over the size of the union (Jaccard 1901); 1 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def copied_share(text: str, source: str, n: int = 3) -> float:
    """The share, 0 to 1, of the distinct word n-grams of `text` that also stand in `source`.

    A text of fewer than `n` words is too short to be called a copy: 0.
    """
    own = word_ngrams(text, n)
    return len(own & word_ngrams(source, n)) / len(own) if own else 0.0


# --- degenerate texts ---------------------------------------------------------------------------------

_MARKER = r"(?:[-*•]|\(?\d{1,3}[.)])"
_LEADING_MARKER = re.compile(rf"^\s*{_MARKER}\s+")
_UNIT_BREAK = re.compile(rf"\n+|(?<=[.!?。！？])\s+|\s+(?={_MARKER}\s)")
_STUTTER = re.compile(r"((?=[^\W\d_])\w{1,6}?)\1{7,}")
_LONGEST_PERIOD = 30
_RULES = str.maketrans("", "", "|-=")  # the lines that tables and headings are drawn with


def is_degenerate(text: str) -> str | None:
    """Why `text` is no usable text: "empty", "not-words" or "repetitive"; None for an ordinary one.

    It is not words when less than a quarter of its visible characters (the lines of tables aside) are
    letters or digits, or a stuttered syllable (`lolololol…`) fills half of it.

    It is repetitive when sentences or list items that stood before make up two fifths of it, one short item
    fills four fifths of a list, or a run of words that repeats four times without a break (a single word:
    six times) fills half of it.
    """
    visible = re.sub(r"\s", "", text)
    if not visible:
        return "empty"
    letters = _letters(visible)
    if not letters or letters < 0.25 * len(visible.translate(_RULES)):
        return "not-words"
    if any(len(match[0]) >= 0.5 * len(visible) for match in _STUTTER.finditer(visible)):
        # "very very very" stutters too once its spaces are gone; with spaces it is a repetition.
        return "repetitive" if len(words(text)) > 3 else "not-words"
    return "repetitive" if _repeats_units(text) or _loops(words(text)) else None


def _letters(visible: str) -> int:
    return sum(char.isalnum() or unicodedata.category(char)[0] == "M" for char in visible)


def _repeats_units(text: str) -> bool:
    """Whether whole sentences or list items come again and again."""
    units = [tuple(words(_LEADING_MARKER.sub("", unit))) for unit in _UNIT_BREAK.split(text)]
    counts = Counter(unit for unit in units if unit and not all(word.isdigit() for word in unit))
    if not counts:
        return False
    total = sum(len(unit) * count for unit, count in counts.items())
    again = sum(len(unit) * (count - 1) for unit, count in counts.items() if len(unit) >= 3)
    if again >= 6 and again >= 0.4 * total:
        return True
    unit, count = counts.most_common(1)[0]
    return count >= 3 and len(unit) * count >= 0.8 * total


def _loops(sequence: Sequence[str]) -> bool:
    """Whether one run of words, repeated without a break, fills half of the text."""
    n = len(sequence)
    for period in range(1, min(_LONGEST_PERIOD, n // 4) + 1):
        span = _longest_match(sequence, period) + period
        if span >= (6 if period == 1 else 4 * period) and span >= 6 and span >= 0.5 * n:
            return True
    return False


def _longest_match(sequence: Sequence[str], period: int) -> int:
    """The longest stretch of positions whose word equals the word `period` places before."""
    longest = run = 0
    for i in range(period, len(sequence)):
        run = run + 1 if sequence[i] == sequence[i - period] else 0
        longest = max(longest, run)
    return longest


# --- texts cut by a token limit -----------------------------------------------------------------------

_CLOSERS = "\"'”’)\\]*_`»"
_END = re.compile(rf"(?:[.!?…]+[{_CLOSERS}]*(?=\s|$))|(?:[。！？][{_CLOSERS}」』）]*)")
_LIST_LINE = re.compile(rf"^[ \t]*{_MARKER}[ \t]+\S.*$", re.MULTILINE)
_ENDS_WITH_MARKER = re.compile(
    r"(?:(?:^|\n|[.!?][\"'”’)*]*\s)[ \t]*[*_]*\(?(?:\d{1,3}|[A-Za-z])|[:;]\s+[*_]*\(?[1aA])$"
)
_DANGLING = re.compile(
    r"(?:(?:^|\n)[ \t]*(?:[-*•#]+|[*_]*\(?\d{1,3}[.)][*_]*|(?<=\n)\d{1,3})|[:;]\s+[*_]*\(?1[.)])$"
)
_TITLE = re.compile(r"(?:^|[\s(\"“])(?:mr|mrs|ms|dr|prof|vs|cf|approx|e\.g|i\.e|eg|ie)$", re.IGNORECASE)
_MAYBE_TITLE = re.compile(r"(?:^|[\s(])(?:etc|a\.m|p\.m|u\.s|u\.k|inc|ltd|al|jr|sr|co|st)$", re.IGNORECASE)
_INITIAL = re.compile(r"(?:^|[\s.(])(?!I$)[A-Z]$")


def complete_sentences(text: str) -> str:
    """The longest beginning of `text` that ends with a full sentence or a full list item.

    For texts that a token limit cut off. The full stop of an abbreviation, an initial or a list number
    ends no sentence. A text without any full sentence comes back whole, less a list marker that dangles
    at its end.
    """
    if ends := _sentence_ends(text):
        return text[: ends[-1]]
    kept = _DANGLING.sub(_punctuation, text.rstrip())
    return kept.rstrip() if kept != text.rstrip() and kept.strip() else text


def leading_sentences(text: str, most: int) -> str:
    """The beginning of `text` up to its `most`th full sentence, or up to the first that is said again.

    A sentence is said again if its words, or more than half of its word trigrams, stood before it in one that
    is kept. A text with fewer sentences comes back whole.
    """
    return text[: _leading(text, _sentence_ends(text), most)]


def says_enough(text: str, most: int) -> bool:
    """Whether `leading_sentences(text, most)` is settled, so that nothing added to the text would change it.

    What follows a sentence decides whether it has ended: ends with nothing behind them do not count yet.
    """
    return _leading(text, [end for end in _sentence_ends(text) if text[end:].strip()], most) is not None


def _leading(text: str, ends: Sequence[int], most: int) -> int | None:
    """Where the leading sentences end, of sentences that end there; None: all of the text is theirs."""
    kept: list[str] = []
    start = 0
    for end in ends:
        sentence = text[start:end]
        if any(words(sentence) == words(said) or copied_share(sentence, said) > 0.5 for said in kept):
            return start
        kept.append(sentence)
        start = end
        if len(kept) == most:
            return end
    return None


def _sentence_ends(text: str) -> list[int]:
    """Where full sentences and full list items end, in order."""
    ends = {match.end() for match in _END.finditer(text) if _ends_sentence(text, match)}
    ends |= {match.end() for match in _LIST_LINE.finditer(text) if _ends_item(text, match)}
    return sorted(ends)


def _punctuation(dangling: re.Match[str]) -> str:
    """What stays of a list marker that dangles behind "Steps:" on the same line."""
    return dangling[0][0] if dangling[0][0] in ":;" else ""


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    before = text[max(0, match.start() - 40) : match.start()]
    if match.start() > 40:
        before = "\0" + before  # so that `^` means the start of the text
    if _ENDS_WITH_MARKER.search(before) or _TITLE.search(before) or _INITIAL.search(before):
        return False
    following = text[match.end() : match.end() + 40].lstrip()
    return not (_MAYBE_TITLE.search(before) and following and not following[0].isupper())


def _ends_item(text: str, match: re.Match[str]) -> bool:
    """A list line is full when another line follows it and it does not announce one by a colon."""
    return text[match.end() : match.end() + 1] == "\n" and not match[0].rstrip(" *_").endswith(":")


# --- near-duplicates ----------------------------------------------------------------------------------

_SHORT = 5


def drop_near_duplicates(texts: Sequence[str], max_similarity: float, known: Sequence[str] = ()) -> list[int]:
    """The indices of the texts to keep: each is dropped that is too similar to an earlier kept one.

    So is one that is too similar to a `known` text, which itself is no part of the result.

    Similarity is the Jaccard index of the word trigrams; texts of fewer than five words are compared
    among each other by their sets of words. Texts are too similar above `max_similarity`, or when equal.

    Only texts that share one of their rarest features can be similar enough (prefix filtering, Chaudhuri
    et al. 2006), so an index of those alone finds every candidate; the result is exact.
    """
    features = [_features(text) for text in (*known, *texts)]
    frequency = Counter(feature for own in features for feature in own)
    index: dict[Ngram, list[int]] = {}
    kept: list[int] = []
    for i, own in enumerate(features):
        rarest = sorted(own, key=lambda feature: (frequency[feature], feature))
        prefix = rarest[: len(own) - math.ceil(max_similarity * len(own) - 1e-9) + 1]
        candidates = {j for feature in prefix for j in index.get(feature, ())}
        if i >= len(known) and any(_too_similar(own, features[j], max_similarity) for j in candidates):
            continue
        kept.append(i)
        for feature in prefix:
            index.setdefault(feature, []).append(i)
    return [i - len(known) for i in kept if i >= len(known)]


def _features(text: str) -> set[Ngram]:
    sequence = words(text)
    if not sequence:
        return {("", text.strip())}  # no word starts with nothing, so this meets its like only
    return {(word,) for word in sequence} if len(sequence) < _SHORT else _ngrams(sequence, 3)


def _too_similar(a: set[Ngram], b: set[Ngram], limit: float) -> bool:
    smaller, larger = sorted((len(a), len(b)))
    if smaller < limit * larger:
        return False
    similarity = jaccard(a, b)
    return similarity > limit or similarity == 1.0
