"""Phrases about where things are and what is being done, and what each may be exchanged for (our own rules)."""

from __future__ import annotations

from hacl.hallucinate.lexicon import PhraseRule


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
throw | catch,kick | | person | ball frisbee baseball pitch football
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
carry | throw,drop | | person | suitcase surfboard bag luggage box backpack umbrella ball skateboard board
drink | pour | | person | water wine beer coffee milk
pose | argue,dance | with next in on near | person |
wait | argue,dance | at in on near by | person |
work | sleep,dance | at in | person |
take | drop | | person | luggage suitcase
"""

# type | phrase | becomes | nouns that must follow | subject groups
_PHRASES = """
relation | in front of | behind | mirror building bus train car truck fence house couch bench tv television crowd \
store church window wall tree door elephant refrigerator oven boat bed cake pizza clock toilet | person animal \
vehicle bike furniture seat carried bag small street_object
relation | behind | in front of | building bus train car truck fence house couch bench tree wall elephant boat \
giraffe zebra bear horse | person animal vehicle bike furniture seat street_object
relation | on top of | under,next to,behind | table bed desk bench couch car truck counter refrigerator tv \
television microwave oven laptop book box building chair suitcase luggage dresser shelf plate rock |
relation | on | under,beside | bed couch bench chair rug | animal small bag desk_item screen
relation | on | under,beside,behind | bench couch bed chair | person
relation | on | under,next to | table desk shelf | animal small bag desk_item screen tableware cutlery meal food
relation | on | next to,behind | skateboard surfboard motorcycle horse bicycle elephant bike bus train boat truck \
snowboard | person animal
relation | on | next to | plate tray napkin | meal food cutlery
relation | in | next to,behind,in front of | car truck boat bus suitcase box basket bathtub tub cart van | person \
animal
relation | in | next to,beside,under | bowl cup vase sink basket box microwave oven refrigerator |
relation | in | beside,next to | bed water pool lake river ocean | person animal
relation | under | on top of,beside | table bed desk bench bridge chair car |
relation | under | next to,beside | umbrella |
relation | under | far from | tree |
relation | underneath | on top of,beside | table bed desk bench bridge chair car |
relation | underneath | next to,beside | umbrella |
relation | underneath | far from | tree |
relation | beneath | on top of,beside | table bed desk bench bridge chair car |
relation | beneath | next to,beside | umbrella |
relation | beneath | far from | tree |
relation | above | below,under | sink toilet stove fireplace table bed window door desk counter sign tv oven \
bridge |
relation | below | above | sink table window door desk counter sign bridge |
relation | over | under | sink stove bridge fence toilet fireplace bed oven desk counter |
relation | inside of | outside of,behind,under | |
relation | outside of | inside of,behind | |
relation | inside | outside,behind | building house bus train car store room kitchen bathroom restaurant |
relation | outside | inside,behind | building house bus train car store restaurant window |
relation | next to | under,on top of | table bench bed chair couch car truck desk tree bus | animal small bag \
tableware desk_item food meal
relation | next to | inside,behind,far from | building bus train truck car boat house | person animal bike
relation | beside | far from,behind | building bus train truck car boat house river lake road ocean water | \
person animal bike vehicle
relation | near | far from | beach ocean water river lake building tree road fence house shore train bus car bench |
relation | on the side of | in the middle of | road street highway |
relation | in the middle of | at the edge of,beside | road street field room lake ocean river park pool |
relation | on the left | on the right | |
relation | on the right | on the left | |
relation | to the left | to the right | |
relation | to the right | to the left | |
relation | left of | right of | |
relation | right of | left of | |
relation | left side | right side | |
relation | right side | left side | |
relation | at the top of | at the bottom of | |
relation | at the bottom of | at the top of | |
relation | during | before,after | game match dinner lunch meal parade race show event competition speech |
relation | in the corner of | in the middle of | |
relation | at the edge of | in the middle of | |
relation | on the end of | in the middle of | |
relation | on the back of | on the front of,next to | |
relation | in the back of | in front of,next to | |
relation | on both sides | on one side | |
relation | side by side | far apart | |
relation | next to each other | far from each other | |
relation | in a row | in a circle | |
relation | in a circle | in a row | |
relation | upside down | right side up | |
relation | in the corner | in the middle | |
relation | in the middle | in the corner | |
relation | in the background | in the foreground | |
relation | in the foreground | in the background | |
relation | in the distance | in the foreground | |
relation | down | up | hill mountain slope ramp stair stairs hillside |
relation | up | down | hill mountain slope ramp stair stairs hillside |
relation | into | out of | water building pool ocean river car box suitcase lake bus |
relation | out of | into | water building pool ocean river car box suitcase window bus lake |
relation | towards | away from | |
relation | toward | away from | |
relation | away from | towards | camera station ocean water building beach shore |
relation | facing the camera | facing away from the camera | |
relation | through | around | forest field tree park woods pasture building |
relation | between | in front of,behind | |
relation | around | far from,behind | table bench tree fire | person animal
relation | across | along,beside | street road bridge field river | person animal vehicle bike
relation | along | away from | beach shore river | person animal vehicle bike
relation | along | across | road street | person animal
action | looking at the camera | looking away from the camera | | person animal
action | looking at | pointing at,laughing at | | person
action | looking out | sitting by,standing at | window door | animal
action | parked on | driving on,speeding along | street road | vehicle bike
action | parked in front of | driving past | building house store church restaurant | vehicle bike
action | parked next to | driving past | | vehicle bike
action | parked beside | driving past | | vehicle bike
action | parked near | driving past | | vehicle bike
action | parked along | driving along | | vehicle bike
action | parked in | driving through | lot parking_lot street field parking garage | vehicle bike
action | driving down | parked on | street road highway | vehicle bike person
action | driving on | parked on | street road highway | vehicle
action | traveling down | stopped on,parked on | street road highway track | vehicle
action | traveling on | stopped on | street road highway track | vehicle
action | moving down | stopped on | street road highway track | vehicle
action | going down | stopped on | street road highway track | vehicle
action | talking on | texting on,playing games on | phone cell_phone cellphone | person
action | sitting down | standing up,lying down | | person
action | lying down | standing up,sitting up | | person animal
action | laying down | standing up,sitting up | | person animal
action | standing up | lying down,sitting down | | person animal
action | doing a trick | taking a break | | person
action | brushing his teeth | washing his face | | person
action | brushing her teeth | washing her face | | person
action | brushing their teeth | washing their faces | | person
action | taking a picture of | walking away from,pointing at,running towards | | person
action | waiting to cross | running across | street road intersection | person
action | flying through | parked under | air sky | aircraft
action | taking off from | landing on,parked on | runway airport tarmac | aircraft
action | jumping over | walking around | fence hurdle bar | person animal
action | wearing a suit | wearing a swimsuit,wearing a raincoat | | person
attribute | at night | during the day | |
attribute | during the day | at night | |
attribute | black and white photo | color photo | |
attribute | black and white photograph | color photograph | |
attribute | black and white picture | color picture | |
attribute | black and white image | color image | |
attribute | close up of | distant view of | |
attribute | close-up of | distant view of | |
attribute | closeup of | distant view of | |
attribute | double decker | single decker | bus |
"""


def third_persons() -> dict[str, str]:
    """ "sitting" -> "sits"."""
    return dict(_VERBS.values())


def phrase_rules() -> tuple[PhraseRule, ...]:
    """Every rule, verbs in both finite and -ing form, longest phrase first."""
    rules = [_phrase_rule(line) for line in _lines(_PHRASES)]
    for line in _lines(_ACTIONS):
        verb, becomes, followers, subjects, landmarks = line
        news = becomes.split(",")
        allowed = followers.replace("LYING", " ".join(_LYING)).replace("STILL", " ".join(_STILL))
        for form in (0, 1):
            rules.append(
                PhraseRule(
                    "action",
                    _VERBS[verb][form],
                    tuple(_VERBS[new][form] for new in news),
                    _set(landmarks) if landmarks else None,
                    _following(allowed, "STILL" in followers) if followers else None,
                    _set(subjects) if subjects else None,
                    {_VERBS[new][form]: frozenset((new, *_VERBS[new], *_CLAIMS.get(new, ()))) for new in news},
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
