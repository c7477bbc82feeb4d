"""Verbs of captions and what each may be exchanged for (our own rules), and every rule of phrases as one list."""

from __future__ import annotations

from dataclasses import replace

from hacl.hallucinate.lexicon import PhraseRule
from hacl.hallucinate.vocabulary_rules import PHRASES


def _set(text: str) -> frozenset[str]:
    return frozenset(word.replace("_", " ") for word in text.split())


# Verbs: base -> (-ing form, third person).
_VERBS = {
    "sit": ("sitting", "sits"), "stand": ("standing", "stands"), "lie": ("lying", "lies"), "lay": ("laying", "lays"),
    "run": ("running", "runs"), "sleep": ("sleeping", "sleeps"), "walk": ("walking", "walks"),
    "kneel": ("kneeling", "kneels"), "ride": ("riding", "rides"), "push": ("pushing", "pushes"),
    "repair": ("repairing", "repairs"), "wash": ("washing", "washes"), "feed": ("feeding", "feeds"),
    "lead": ("leading", "leads"), "carry": ("carrying", "carries"), "watch": ("watching", "watches"),
    "eat": ("eating", "eats"), "make": ("making", "makes"), "cut": ("cutting", "cuts"), "throw": ("throwing", "throws"),
    "hold": ("holding", "holds"), "fold": ("folding", "folds"), "drop": ("dropping", "drops"),
    "play": ("playing", "plays"), "text": ("texting", "texts"), "talk": ("talking", "talks"),
    "decorate": ("decorating", "decorates"), "serve": ("serving", "serves"), "fly": ("flying", "flies"),
    "catch": ("catching", "catches"), "kick": ("kicking", "kicks"), "swing": ("swinging", "swings"),
    "ski": ("skiing", "skis"), "surf": ("surfing", "surfs"), "swim": ("swimming", "swims"),
    "graze": ("grazing", "grazes"), "smile": ("smiling", "smiles"), "frown": ("frowning", "frowns"),
    "cry": ("crying", "cries"), "drive": ("driving", "drives"), "look": ("looking", "looks"),
    "point": ("pointing", "points"), "laugh": ("laughing", "laughs"), "wear": ("wearing", "wears"),
    "pull": ("pulling", "pulls"), "use": ("using", "uses"), "clean": ("cleaning", "cleans"),
    "prepare": ("preparing", "prepares"), "cook": ("cooking", "cooks"), "read": ("reading", "reads"),
    "hit": ("hitting", "hits"), "miss": ("missing", "misses"), "brush": ("brushing", "brushes"),
    "pet": ("petting", "pets"), "chase": ("chasing", "chases"), "jump": ("jumping", "jumps"),
    "travel": ("traveling", "travels"), "move": ("moving", "moves"), "pour": ("pouring", "pours"),
    "drink": ("drinking", "drinks"), "pose": ("posing", "poses"), "argue": ("arguing", "argues"),
    "dance": ("dancing", "dances"), "tear": ("tearing", "tears"), "bury": ("burying", "buries"),
    "sniff": ("sniffing", "sniffs"), "crawl": ("crawling", "crawls"), "hide": ("hiding", "hides"),
    "fight": ("fighting", "fights"), "wait": ("waiting", "waits"), "work": ("working", "works"),
    "rest": ("resting", "rests"), "buy": ("buying", "buys"), "dry": ("drying", "dries"),
    "snowboard": ("snowboarding", "snowboards"), "skateboard": ("skateboarding", "skateboards"),
    "burn": ("burning", "burns"), "break": ("breaking", "breaks"),
    "release": ("releasing", "releases"), "taste": ("tasting", "tastes"), "share": ("sharing", "shares"),
    "sell": ("selling", "sells"), "enjoy": ("enjoying", "enjoys"), "leave": ("leaving", "leaves"),
    "enter": ("entering", "enters"), "block": ("blocking", "blocks"),
    "take": ("taking", "takes"), "wave": ("waving", "waves"), "roll": ("rolling", "rolls"),
}  # fmt: skip
_CLAIMS = {
    "sit": ("seated", "seat", "sit", "sat"), "lie": ("lying", "laying", "lays", "lay", "laid", "resting", "asleep"),
    "sleep": ("asleep", "nap", "napping", "resting", "lying", "laying"), "stand": ("stand", "stood"),
    "run": ("ran", "race", "racing"), "eat": ("ate", "eaten", "bite", "biting"), "hold": ("held",),
    "carry": ("carried", "holding", "holds"), "wash": ("bath", "bathing"), "fly": ("flight",), "catch": ("caught",),
}  # fmt: skip
_STILL = _set("on in near next by beside behind under with inside outside") | {""}
_LYING = _set("on in near next by beside behind under")
PATHS = frozenset(ing for ing, _ in _VERBS.values())

# What may stand between a thing and the place it is in.
_PLACED = _set(
    "sitting standing laying lying sleeping resting seated placed parked is are was were sits stands lays lies stacked "
    "perched kneeling arranged displayed sit stand lay lie"
)

# verb | becomes | what must follow | whose action | nouns the action is done to
_ACTIONS = """
sit | stand,lie,kneel | LYING | person |
sit | stand | STILL at around | person |
sit | stand,sleep | LYING | animal |
stand | sit,kneel | STILL at around | person |
stand | lie,sleep,sit | LYING | animal |
walk | sit,lie,kneel | near next by beside behind under in on | person |
walk | run,crawl | down across through along up past into toward towards | person |
walk | lie,sleep,sit | LYING | animal |
walk | run | down across through along up past into toward towards | animal |
run | sit,stand,lie | near next by beside behind under in on | person |
run | lie,sleep,sit | LYING | animal |
lay | stand,sit | LYING | person animal |
lie | stand,sit | LYING | person animal |
sleep | stand,eat,play | LYING | person animal |
rest | run,play | on in near next by beside under | animal |
graze | sleep,lie,run | on in near next by beside | animal |
ride | push,repair,wash | | person | bicycle motorcycle
ride | feed,lead,wash | | person | horse elephant
ride | carry,drop | | person | skateboard surfboard snowboard board
ride | watch | | person | wave
eat | throw,make,buy | | person | sandwich pizza hot_dog donut cake burger
eat | throw,drop,buy,wash | | person | banana apple carrot orange fruit vegetable
eat | sniff | | animal | grass hay leaf food plant
hold | fold,repair,drop | | person | umbrella
hold | throw,drop,repair | | person | frisbee kite
hold | drop,clean,repair | | person | tennis_racket baseball_bat racket bat phone cell_phone camera remote \
skateboard surfboard
hold | feed,wash,chase | | person | dog cat baby child puppy kitten
hold | wash,break,drop | | person | cup plate bottle bowl vase wine_glass toothbrush
hold | wear | | person | hat helmet tie
wear | hold,fold,wash | | person | hat helmet jacket tie shirt backpack sunglasses glove coat
play | watch | | person | tennis baseball frisbee soccer game wii football video
cut | decorate,eat | | person | cake
cut | eat,burn,serve | | person | pizza food sandwich meat vegetable
prepare | eat,serve,throw | | person | food meal pizza dinner sandwich lunch
cook | eat,serve | | person | food meal pizza dinner
make | eat,drop | | person | sandwich pizza food cake
serve | eat,cook | | person | food cake pizza meal
fly | fold,repair,carry | | person | kite
swing | drop,carry,clean | | person | tennis_racket baseball_bat racket bat racquet
throw | catch | | person | ball frisbee baseball pitch football
catch | throw,kick | | person | ball frisbee baseball wave football
kick | throw,catch | | person | ball soccer
hit | miss,catch,drop | | person | ball tennis baseball
ski | snowboard,walk | down on through in | person |
snowboard | ski,walk | down on through in | person |
surf | swim | in on at near | person |
skateboard | dance,walk | down on in at | person |
smile | frown,cry | at for on in while with and | person |
look | point,laugh | at | person |
watch | repair,clean | | person | tv television
use | repair,clean,carry | | person | laptop computer phone cell_phone
read | tear,fold | | person | book newspaper magazine paper
brush | wash,dry,cut | | person | hair dog cat horse
pet | feed,chase,wash | | person | dog cat horse elephant sheep cow giraffe
pull | push | | person | cart wagon suitcase luggage
push | pull | | person | cart wagon suitcase luggage stroller bicycle
carry | throw,drop | | person | suitcase surfboard bag luggage box backpack umbrella ball skateboard board kite \
basket purse
drink | pour | | person | water wine beer coffee milk
pose | argue,dance | with next in on near | person |
wait | argue,dance | at in on near by | person |
work | sleep,dance | at in | person |
take | drop | | person | luggage suitcase
release | catch,drop | | person | ball baseball frisbee kite
taste | pour,sell | | person | wine beer food coffee
share | drop,break | | person small | bottle cup plate bowl
enjoy | leave | | person | reception party ceremony wedding concert
enjoy | serve,sell | | person | food meal lunch dinner breakfast snack pizza sandwich
enter | leave | | person vehicle | building room house store station train bus
hide | wash | | person | face
hold | drop,fold | | person | photo picture paper newspaper card magazine book
"""


def third_persons() -> dict[str, str]:
    """ "sitting" -> "sits"."""
    return dict(_VERBS.values())


def phrase_rules() -> tuple[PhraseRule, ...]:
    """Every rule, verbs in the finite form, in -ing and after "to", longest phrase first."""
    rules = [_phrase_rule(line) for line in _lines(PHRASES)]
    for line in _lines(_ACTIONS):
        verb, becomes, followers, subjects, landmarks = line
        news = becomes.split(",")
        allowed = followers.replace("LYING", " ".join(_LYING)).replace("STILL", " ".join(_STILL))
        claims = {new: frozenset((new, *_VERBS[new], *_CLAIMS.get(new, ()))) for new in news}
        for form in (0, 1):
            rules.append(
                PhraseRule(
                    "action",
                    _VERBS[verb][form],
                    tuple(_VERBS[new][form] for new in news),
                    _set(landmarks) if landmarks else None,
                    _following(allowed, "STILL" in followers) if followers else None,
                    _set(subjects) if subjects else None,
                    {_VERBS[new][form]: claims[new] for new in news},
                )
            )
        rules.append(
            replace(
                rules[-1],
                phrase=f"to {verb}",
                replacements=tuple(f"to {new}" for new in news),
                claims={f"to {new}": claims[new] for new in news},
            )
        )
    return tuple(sorted(rules, key=lambda rule: -len(rule.phrase.split())))


def _following(text: str, may_end: bool) -> frozenset[str]:
    return _set(text) | ({""} if may_end else frozenset())


def _lines(table: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")] for line in table.strip().splitlines()]


def _phrase_rule(parts: list[str]) -> PhraseRule:
    kind, phrase, becomes, landmarks, *subjects = (*parts, "")[:5]
    return PhraseRule(
        kind,
        phrase,
        tuple(new.strip() for new in becomes.split(",")),
        _set(landmarks) if landmarks else None,
        None,
        _set(subjects[0]) if subjects and subjects[0] else None,
        after=_PLACED if phrase in ("on", "in") else frozenset(),
    )
