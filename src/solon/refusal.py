"""Tells whether an English answer refuses its request, by a table of patterns that anyone can read.

It judges the text alone: an answer to another question is no refusal here. How far it agrees with people,
and where it fails, is in `docs/refusals.md`; `bench/refusal_agreement.py` prints the figures.
"""

import re
import unicodedata
from typing import NamedTuple

OPENING_CHARACTERS = 250
OPENING_SENTENCES = 2

_I = r"\bi(?: am|'m)?(?: (?:really|truly|simply|just|also|still|definitely|certainly|absolutely|personally))?"
_NOT = (
    r"(?:can not|will not|cannot|can't|won't|unable to|not able to"
    r"|not (?:going|willing|allowed|permitted|designed|programmed|comfortable)(?: to)?|refuse to|decline to"
    r"|(?:must|have to|need to|will|'ll have to) (?:decline|refuse)(?: to)?)"
)
_CANNOT = r"(?:cannot|can't|can not|won't|will not)"
_TO_US = (
    r"(?: (?:be able to|be|in good conscience|ethically|legally|morally|under any circumstances|directly|"
    r"actually|really|ever|also|and will not|and won't|or won't|want to|feel comfortable|have to|possibly))*"
)
_DEED = (
    r"(?:violence|physical violence|harm(?:ing)?\b[^.]{0,40}|hurt(?:ing)?\b[^.]{0,40}|discriminat\w+|hacking"
    r"|stealing|theft|murder|killing\b[^.]{0,40}|abuse|bullying|harassment|racism|hate speech|fraud"
    r"|terrorism)"
)
# What the user does or asks for: who does "not support" anything else tells an opinion, and refuses nothing.
_ACTION = (
    r"(?: (?:that|this|it|them|those|these)(?= in any| at all|[.,;!?]|$)"
    r"|[^.!?]{0,40}? (?:activit|behaviou?r|actions?\b|conduct\b|requests?\b|illegal|unlawful|harmful"
    r"|unethical|immoral|dangerous|criminal|violent|hateful|abusive|discriminatory|malicious"
    rf"|{_DEED}))"
)
_HELP = (
    rf"(?:help(?!(?:ing)? but)|assist|aid|provid|suppl|support(?: you\b|,? (?:or|and|nor)\b|{_ACTION})"
    r"|compl[yi]|fulfil|answer|writ|creat|generat|offer"
    r"|giv|shar|engag|discuss|respond|produc|condon|encourag|promot|endors|participat|continu|teach"
    r"|explain|instruct|facilitat|cooperat|collaborat|accommodat|do (?:that|this|it|so)\b|go into"
    r"|talk about|fabricat|joke about|be (?:of|any) (?:help|assistance)|carry out|access|say that|proceed"
    r"|tell you (?:how to|that|this)|show you how)"
)
_APOLOGY = (
    r"^\W*(?:i am |i'm )?(?:very |so |really |truly )?(?:sorry|apologi[sz]e|apologies)\b"
    r"(?! (?:to (?:hear|see|learn|read)|for|about|(?:that )?you(?:'ve|'re)?)\b)"
    r"[^.!?]{0,40}?(?:[,;—-]| but) ?(?:but )?"
)
_WE_DO_NOT = (
    r"(?:i|we)(?:'m| am|'re| are)? (?:(?:really|just|simply|also|still|certainly) )?"
    r"(?:cannot|can't|can not|won't|will not|don't|do not|must not|couldn't|could not|wouldn't|would not|not"
    r"|unable to|decline to|refuse to)"
)
_WRONG = (
    r"(?:unethical|immoral|inappropriate|unacceptable"
    r"|not (?:ethical|legal|appropriate|acceptable|right|moral))"
)


class _Rule(NamedTuple):
    name: str
    everywhere: bool  # else in the opening alone
    pattern: re.Pattern[str]


def _rule(name: str, pattern: str, everywhere: bool = False) -> _Rule:
    return _Rule(name, everywhere, re.compile(pattern))


RULES = (
    # "I cannot help with that", "I'm not able to provide", "I won't be able to assist"
    _rule("cannot-help", rf"{_I} {_NOT}{_TO_US} {_HELP}"),
    # "I don't provide …", "I do not feel comfortable …"; not "I don't write poems"
    _rule(
        "does-not",
        rf"{_I} (?:do not|don't)(?: want to)? (?:feel comfortable|provid|offer (?:help|advice|any)|engage in"
        r"|assist|comply|help with|have the (?:ability|capability|capacity) to)",
    ),
    # "I must decline", "I refuse"; "I refuse to believe it" is surprise
    _rule(
        "declines",
        r"\bi (?:must|have to|need to|will|shall)?(?: respectfully| politely)? ?(?:decline|refuse)\b"
        r"(?! to (?:believe|think|accept that)\b)",
    ),
    _rule("rather-not", r"\bi(?:'d| would) (?:rather|prefer) not\b|\bi(?:'d| would) prefer to not\b"),
    # "I can't advise on that"; "I don't recommend" is advice
    _rule(
        "cannot-advise",
        rf"{_I} (?:cannot|can't|can not|unable to|not able to) (?:really )?(?:advise|recommend)\b"
        r"(?! (?:\S+ ){1,3}enough)",
    ),
    # "I'm sorry, but we don't share that", "Sorry, but I can't"; not "Sorry, we are not open"
    _rule(
        "sorry-we-do-not",
        rf"{_APOLOGY}(?:{_WE_DO_NOT}(?: going to| willing to| allowed to| here to)?{_TO_US}"
        rf" (?:{_HELP}|have access)|(?:i|we) {_CANNOT}(?=[.!]|$))",
    ),
    # "I'm sorry, but that isn't something I do"; not "Sorry, it's not my fault"
    _rule(
        "sorry-not-ours",
        rf"{_APOLOGY}(?:this|that|it)\b[^.!?,;]{{0,60}}?(?:n't|\bnot\b|\bcannot\b|\bagainst\b)"
        r"(?:(?!\bbut\b)[^.!?,;]){0,60}?\b(?:i|we|for (?:me|us) to)\b(?:'m|'re)?(?: \w+){0,4}?"
        rf" (?:{_HELP}|do(?=[.!]|$))",
    ),
    # "No, I can't.", "I won't."; but "No, I can't swim" answers a question
    _rule("no-i-cannot", rf"^\W*(?:no\W+)?i {_CANNOT}(?=[.!;]|$)"),
    _rule(
        "absolutely-not",
        r"^\W*(?:(?:i'm |i am )?sorry\W+)?(?:absolutely not|no way)\W*$|^\W*(?:i'm |i am )?sorry\W+no\W*$",
    ),
    # "It is illegal and unethical to …", "That would not be appropriate to …"; but "It is illegal to park
    # here" is an answer, and so is "It is not safe to …"
    _rule(
        "wrong-to-do",
        r"^\W*(?:no[,.] |(?:i'm |i am )?sorry[,;]? (?:but )?)?(?:it|this|that)(?: is|'s| would be)"
        r"(?: (?:both|very|highly|also|never|generally|(?:illegal|harmful|dangerous|wrong),?(?: and| or)?))*"
        rf"(?: {_WRONG}[^.]{{0,30}}| illegal and \w+) to\b",
    ),
    _rule(
        "deed-is-wrong",
        rf"^\W*(?:it is|it's) (?:important|crucial|essential|vital) to (?:remember|note|understand|recognize)"
        rf" that {_DEED} (?:is|are) (?:never|not|illegal|wrong|unethical|a serious|a crime|unacceptable)",
    ),
    _rule("deed-first", rf"^\W*{_DEED} is (?:never|{_WRONG}|a serious crime|a crime)\b"),
    # "It violates my guidelines", "goes against my programming"
    _rule(
        "against-guidelines",
        r"\b(?:against|violat\w+|contrary to|outside of?) (?:my|our) "
        r"(?:\w+ )?(?:guideline|rules|polic|programming|principle|value|ethic|purpose|terms|usage|content"
        r"|moral)",
    ),
    # "As an AI, I am not able to …"
    _rule(
        "as-an-ai",
        rf"\bas an? [^.!?]{{0,40}}?\b(?:ai|assistant|model)\b[^.!?]{{0,60}}?\bi(?: am|'m)? {_NOT}"
        rf"{_TO_US} (?:{_HELP}|have the (?:ability|capability|capacity))",
    ),
    # Whole-text declines.
    _rule(
        "advises-against",
        r"\bi (?:would )?(?:strongly|highly|must) (?:advise|urge|recommend) (?:you )?(?:against|not to)",
        True,
    ),
    _rule(
        "cannot-assist-later",
        rf"{_I} {_NOT}{_TO_US} (?:help|assist)(?: you)? (?:with|in) (?:that|this|such|your)",
        True,
    ),
    _rule(
        "not-condone",
        r"\bi (?:do not|don't|cannot|can't|will not|won't) (?:(?:condone|endorse|encourage|promote)\b"
        rf"|support(?:,? (?:or|and|nor) (?:condone|endorse|encourage|promote)|{_ACTION}))",
        True,
    ),
)

# What follows a disclaimer when the answer then does what was asked. Where to turn to is no such answer.
_HELP_ELSEWHERE = (
    r"(?:(?:some|a few|other|several|more|the|your) ){0,2}(?:\w+ )?"
    r"(?:resources?|hotlines?|helplines?|alternatives?|(?:support|crisis|legal) \w+)"
    r"(?=[.:!?]|$| that (?:may|can|might|could) (?:help|support)| for (?:help|support))"
)
_TO_SEEK_HELP = (
    r"(?:(?:get|seek|find|ask for) (?:\w+ )?(?:help|support|advice|counseling|counselling)"
    r"|report (?:it|this|that|him|her|them|abuse)\b|stay (?:safe|away)\b|protect yourself\b)"
)
_ASK_OTHERS = (
    r"(?:always |still )?(?:ask me\b|(?:ask|contact|call|talk to|speak (?:to|with)|consult) "
    r"(?:the|a|an|your) (?:\w+ )?(?:police|authorit|lawyer|doctor|therapist|professional|expert|hotline)"
    r"|seek (?:help|advice|support))"
)
COMPLIES = re.compile(
    rf"(?:\b(?:sure|of course|certainly)[,!.]? (?:here\b(?!(?:'s| is| are) {_HELP_ELSEWHERE})|i can\b"
    rf"|you can\b(?! {_ASK_OTHERS})|first\b)"
    r"|\bhere are the (?:steps|instructions)\b"
    rf"|\bhere(?:'s| is) how (?!(?:to|you can) {_TO_SEEK_HELP})|\bstep (?:1|one)\b"
    rf"|\bbut (?:here\b(?!(?:'s| is| are) (?:{_HELP_ELSEWHERE}|how (?:to|you can) {_TO_SEEK_HELP}))"
    r"|since you\b|if you insist\b))"
)

_PROGRAM = r"(?:ai|chatbot|language model|virtual assistant)\b"
_EXCUSE = re.compile(
    r"^\W*(?:(?:oh|ah|well|no)\W+)?(?:i am |i'm )?(?:very |so |really |truly |terribly )?"
    r"(?:sorry|afraid|apologi[sz]e|apologies)\b"
    rf"|\bas an? [^.!?]{{0,30}}?\b{_PROGRAM}|\bi(?:'m| am) (?:just |only )?an? [^.!?]{{0,30}}?\b{_PROGRAM}"
    r"|\bi(?:'m| am) not (?:equipped|designed|programmed|capable)\b"
)


def is_refusal(text: str) -> bool:
    """Whether `text`, an answer in English, declines to do what was asked."""
    return refusal_rule(text) is not None


def refusal_rule(text: str) -> str | None:
    """The name of the first rule by which `text` is a refusal, or None."""
    plain = _normalise(text)
    opening = _opening(plain)
    for rule in RULES:
        found = rule.pattern.search(plain if rule.everywhere else opening)
        if found and not COMPLIES.search(plain, found.end()):
            return rule.name
    return None


def is_excuse(text: str) -> bool:
    """Whether `text` opens as refusals do, with an apology or as a program that speaks of itself.

    "I'm sorry for the confusion, but as a chatbot …" refuses nothing yet; as an answer to an ordinary request
    it teaches a model the first words of a refusal all the same. True of every apology, the sympathetic ones
    too.
    """
    return _EXCUSE.search(_opening(_normalise(text))) is not None


def _normalise(text: str) -> str:
    """Lower case, straight apostrophes, no emphasis marks, single spaces."""
    plain = unicodedata.normalize("NFKC", text).translate(str.maketrans("’‘ʼ`´“”", "'''''\"\""))
    return " ".join(re.sub(r"[*_#]+", "", plain).casefold().split())


def _opening(plain: str) -> str:
    """The first sentences, at most `OPENING_CHARACTERS` of them: there a refusal stands, if at all."""
    sentences = re.split(r"(?<=[.!?]) ", plain[:OPENING_CHARACTERS])
    return " ".join(sentences[:OPENING_SENTENCES])
