"""Words that may take each other's place in a caption of a photograph (our own lists): nouns, verbs, prepositions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hacl.hallucinate.english import base_form
from hacl.hallucinate.lexicon import ObjectKind

# type | words of which at most one fits a place (a singular; its plural goes with it)
_NOUNS = """
object | kitchen, bathroom, bedroom, living room, office, restaurant, store, library, garage, classroom, hallway, \
dining room, hotel room, cafe, gym, museum
object | street, beach, field, park, sidewalk, forest, yard, parking lot, hill, mountain, river, lake, ocean, desert, \
runway, driveway, playground, garden, zoo, city, farm, road, pool, harbor, highway, court, town, valley, village
object | grass, snow, sand, water, dirt, mud, ice, gravel
object | building, house, church, barn, tower, bridge, castle, stadium, hotel, tent, warehouse, store
object | fence, wall, tree, pole, gate, rock, bush, statue
object | window, mirror, fireplace, lamp, curtain, bookshelf, painting, door, staircase, chandelier
object | hat, helmet, scarf, crown, wig
object | suit, dress, costume, wetsuit, apron, robe, swimsuit, kimono, raincoat
object | tennis, baseball, soccer, basketball, football, volleyball, golf, hockey, rugby, cricket
object | coffee, beer, milk, juice, soda, wine, tea
object | cheese, meat, bread, rice, salad, soup, fruit, pasta, chicken, fish, bacon, chocolate, vegetable, cereal, \
potato, shrimp, egg, lettuce, tomato, onion, mushroom, noodle
object | plate, tray, basket, box, pan, pot, platter, bucket, bag, jar, napkin
object | table, desk, counter, shelf, floor, couch, bed, chair, bench, rug, sofa, cabinet, dresser, blanket, carpet
object | camera, microphone, guitar, violin, flashlight, broom, hammer, sword, fan, candle
object | reception, ceremony, party, parade, wedding, meeting, concert, festival
object | shirt, jacket, sweater, dress, coat, vest, skirt, scarf
object | flower, bush, cactus, weed
object | roof, porch, balcony, chimney
object | path, road, bridge, stair
object | airport, station, harbor, garage
object | pencil, pen, crayon
object | gift, toy, balloon
object | awning, tent, roof
object | hay, straw, wool, wood
object | breakfast, lunch, dinner
other | christmas, halloween, easter, thanksgiving
object | hill, wave, ramp, rail, slope, staircase
object | morning, evening, night, afternoon
attribute | skier, surfer, skateboarder, snowboarder, cyclist, swimmer, golfer
attribute | batter, pitcher, catcher, umpire
attribute | policeman, fireman, chef, soldier, waiter, doctor, farmer, clown
attribute | photo, picture, image, photograph, painting, drawing, cartoon
"""

# groups of objects whose words may take each other's place
_KIND_GROUPS = (
    "animal", "vehicle bike", "vehicle vessel aircraft", "furniture seat table", "tableware cutlery",
    "food meal", "screen desk_item small", "appliance fixture", "sport carried bag", "small bag toy", "sport toy",
    "street_object seat", "plant small",
)  # fmt: skip

# words of which one may hold where another is said
_ALIKE = """
bathroom restroom toilet shower sink bath tub
restaurant cafe diner bar dining
store shop market mall
office desk cubicle
hallway corridor hall
street road sidewalk highway intersection city town crosswalk curb pavement corner driveway downtown traffic lane
beach ocean sea sand shore sandy coast surf wave waves water
field grass pasture park meadow lawn yard farm grassy green garden plain savannah grassland ranch
hill mountain slope hillside snow ski snowy mountainside ramp
forest woods trees tree wooded jungle bush bushes brush shrub
lake river pond water pool harbor stream bay dock
dirt mud gravel ground sand sandy muddy rocky
snow ice snowy winter
parking_lot lot garage
court tennis
field baseball
building house church tower hotel warehouse store buildings structure home brick
zoo pen enclosure cage
fence wall gate pen railing enclosure barrier cage
pole post sign
rock stone boulder rocks
painting picture mirror poster art
curtain curtains drapes blinds
lamp light lights
door doorway entrance gate
suit jacket uniform tie business formal
dress skirt gown
wetsuit suit
hat cap helmet
bread sandwich bun toast bagel sub
fruit banana apple orange strawberry berries
vegetable vegetables veggies broccoli carrot carrots potato lettuce tomato onion salad mushroom
chicken meat fish bacon beef pork sausage shrimp
pasta noodle noodles spaghetti
soup stew
plate dish platter tray
box crate basket container
pot pan
desk table counter countertop tabletop
floor carpet rug ground
couch sofa loveseat
bed blanket mattress
shelf shelves bookshelf cabinet rack dresser
photo photograph picture image
painting drawing
morning day afternoon daytime sunny sunset dawn
evening night dark dusk sunset
cyclist biker rider bicyclist
skateboarder skater boarder
snowboarder boarder
chef cook
policeman officer cop police
batter hitter player
in inside into within
on atop onto
down up along across
with and
over above
under below beneath underneath
"""

# preposition -> what it may become
_PREPOSITIONS = """
on = under, behind, in front of, next to, beside, above, below, inside, near
on top of = under, behind, next to, inside, in, below
in = on top of, behind, outside, under, next to, in front of, above, on, near, beside
inside = on top of, behind, outside, under, next to
outside = inside, in, behind
under = on, on top of, above, behind, next to
beneath = on, on top of, above
below = on, above, on top of
above = below, under, on
over = under, behind, below
near = on, on top of, in, under, inside, far from, behind
next to = on, on top of, under, inside, behind, in
beside = on, on top of, under, inside, in
by = on, under, behind, inside, in, far from
behind = in front of, on, under, beside, next to
in front of = behind, on, under, inside, beside
against = behind, in front of, on, under
at = behind, in front of, next to, beside
across = along, under, beside
along = across, away from
through = around, over, past
around = behind, on, under
into = out of, away from
out of = into
from = to
towards = away from
toward = away from
down = up
up = down
with = without
without = with
between = behind, in front of
"""

# words of one frame: of each line at most one fits; -ing forms, the other forms are found by rule
_VERBS = """
sitting standing lying laying walking running jumping sleeping kneeling posing waiting dancing crawling swimming \
resting playing eating grazing drinking flying working leaning hanging climbing
holding riding eating wearing carrying cutting throwing catching hitting reading pushing pulling feeding brushing \
preparing making kicking driving washing painting cleaning fixing chasing buying opening drawing folding drinking \
petting watching swinging using
looking smiling pointing laughing waving yelling staring barking
skiing skateboarding snowboarding surfing cycling walking running swimming crawling sledding
parked driving stopped speeding traveling moving turning
"""


# kinds of a thing = the things
_MODIFIERS = """
tennis baseball soccer basketball football volleyball golf hockey rugby = player game match court team field ball coach
kitchen bathroom bedroom office hotel = sink counter cabinet floor window wall mirror door table scene area shelf room \
view space setting set
city country village suburban mountain desert = street road area park scene
school city tour shuttle = bus
passenger freight steam subway = train
fire dump garbage tow delivery = truck
wedding birthday chocolate carrot cheese = cake
cheese pepperoni vegetable mushroom sausage = pizza
stop street traffic = sign
train bus gas police subway = station
polar brown black = bear
teddy = bear
wood brick concrete stone tile marble = floor wall
baseball cowboy straw = hat
video board card = game
dinner lunch breakfast = table plate
passenger fighter = jet plane
ski snow water = slope resort park
office computer dining coffee kitchen = desk table chair
zoo circus = giraffe elephant zebra bear
park city garden = bench
metro school city tour = bus
wine cocktail beer = glass
christmas palm pine apple orange = tree
"""


def modifiers() -> tuple[tuple[tuple[str, ...], frozenset[str]], ...]:
    """(words of which one says what kind of thing a noun is, nouns that all of them fit)."""
    lines = (line.split("=") for line in _MODIFIERS.strip().splitlines())
    return tuple((tuple(kinds.split()), frozenset(nouns.split())) for kinds, nouns in lines)


def noun_groups(kinds: Iterable[ObjectKind]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(type, words of which at most one fits a place) of each group, of our lists and of kinds of objects."""
    lines = (line.split("|") for line in _NOUNS.strip().splitlines())
    ours = [(kind.strip(), tuple(word.strip() for word in words.split(","))) for kind, words in lines]
    kinds = [kind for kind in kinds if kind.countable]
    for groups in _KIND_GROUPS:
        ours.append(("object", tuple(word for kind in kinds if kind.group in groups.split() for word in kind.words)))
    return tuple(ours)


def alike_words() -> tuple[frozenset[str], ...]:
    """Sets of words of which one may hold where another is said."""
    return tuple(frozenset(word.replace("_", " ") for word in line.split()) for line in _ALIKE.strip().splitlines())


def prepositions() -> dict[str, tuple[str, ...]]:
    """Preposition -> what it may become."""
    lines = (line.split("=") for line in _PREPOSITIONS.strip().splitlines())
    return {old.strip(): tuple(word.strip() for word in new.split(",")) for old, new in lines}


def verb_groups(thirds: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Verbs of one frame in -ing, in the third person, which `thirds` gives, and in its plural."""
    lines = [tuple(line.split()) for line in _VERBS.strip().splitlines()]
    finite = [tuple(thirds[verb] for verb in line if verb in thirds) for line in lines]
    return (*lines, *finite, *(tuple(base_form(verb) for verb in line) for line in finite))
