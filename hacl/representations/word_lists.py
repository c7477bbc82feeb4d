"""A short English word list and stop list for reading concepts as words (our own arrangement, by topic).

They cover what captions of photographs speak of. A list of the user's own replaces them; see `grounding.WordRule`.
Inflected forms (plural, -ing, -ed, -er, -est, -ly) of a listed word count as listed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_NOUNS = """
animal bear bee bird bull butterfly calf camel cat cattle chicken cow crab deer dog dolphin donkey duck eagle elephant
fish fox frog giraffe goat goose hen herd horse insect kangaroo kitten lamb lion lizard monkey mouse owl panda parrot
penguin pet pig pigeon pony puppy rabbit rat rooster seagull seal shark sheep snake spider swan tiger turkey turtle
whale wolf worm zebra
adult artist athlete audience baby batter boy bride catcher chef child children clown cook couple cowboy crew crowd
customer dancer doctor driver family farmer father fireman friend gentleman girl goalie groom group guy human husband
kid lady man men mother musician nurse officer passenger pedestrian people person pilot pitcher player police referee
rider runner sailor shopper skater skier soldier speaker student surfer teacher team teenager toddler tourist umpire
vendor waiter wife woman women worker
ankle arm back beard body cheek chest chin ear elbow eye eyebrow face finger foot feet fur hair hand head heel horn
knee leg lip mane mouth muscle mustache nail neck nose paw shoulder skin tail teeth tongue tooth toe trunk tusk wing
wrist
apple apricot bacon bagel banana basil bean beef beer berry biscuit blueberry bread breakfast broccoli bun burger
butter cabbage cake candy carrot cauliflower cereal cheese cherry chips chocolate coffee cookie corn cream croissant
cucumber cupcake curry dessert dinner dough donut drink egg fig flour food fries fruit garlic grape ham honey icing
jam jelly juice ketchup kiwi lemon lemonade lettuce lime lunch mango meal meat melon milk muffin mushroom mustard
noodle nut oatmeal olive omelette onion orange pancake pasta pastry pea peach peanut pear pepper pie pineapple pizza
plum popcorn potato pudding pumpkin radish rice salad salmon salt sandwich sauce sausage shrimp snack soda soup spice
spinach steak stew strawberry sugar sushi syrup taco tea toast tomato vegetable waffle water watermelon wine yogurt
apron backpack bag belt blouse boot bracelet cap clothes clothing coat collar costume dress earring glasses glove
goggles handbag hat headband helmet hoodie jacket jean jersey jewelry mask necklace pajamas pants pocket purse ring
robe sandal scarf shirt shoe shorts skirt sleeve sneaker sock suit suitcase sunglasses sweater swimsuit tie towel
tuxedo umbrella underwear uniform vest wallet watch wetsuit wig zipper
ambulance airplane aircraft airport anchor bicycle bike boat bridge bus cab canoe car carriage cart engine ferry
fender garage gas harbor headlight helicopter highway jeep jet kayak lane limousine locomotive moped motorcycle motor
parking pedal pier plane raft railroad railway road runway sail sailboat scooter seat ship sidewalk sign signal sled
station street subway tank taxi ticket tire track tractor traffic trail trailer train tram transport trolley truck
tunnel van vehicle wagon wheel windshield yacht
alley apartment arch attic balcony bakery bank bar barn basement bathroom bedroom bench billboard booth brick building
cabin cafe castle ceiling cellar chimney church city classroom clinic corridor cottage court dam deck den door doorway
driveway entrance factory farm fence floor fountain garden gate hall hallway hangar hospital hotel house hut kitchen
ladder library lobby lounge mall market monument museum office palace patio pavement plaza pool porch prison pub
railing ramp restaurant roof room school shed shelf shop shower sink skyscraper stable stadium stage staircase stairs
statue steps store studio temple tent theater tile toilet tower town university village wall warehouse window yard zoo
beach branch bush canyon cave cliff cloud coast creek desert dirt dune dust earth field fire flame fog forest frost
grass gravel ground hill horizon ice island jungle lake land leaf leaves lightning log meadow moon mountain mud ocean
palm park path petal planet plant pond puddle rain rainbow reef river rock sand savanna sea sky smoke snow soil star
stone storm stream sun sunlight sunrise sunset swamp tree valley vine volcano waterfall wave weather weed wind wood
flower rose tulip daisy lily orchid sunflower bouquet
alarm antenna bed blanket blender blinds blueprint board book bookshelf bottle bowl box bucket button cabinet cable
calendar camera can candle cane card cardboard carpet chain chair chandelier clock closet coin computer console couch
counter cover crate crib cup cupboard curtain cushion desk dish dishwasher doll drawer dresser dryer fan faucet
figurine flag flashlight fork frame freezer fridge furniture glass globe grill hammer handle hanger heater hook hose
hydrant iron jar kettle key keyboard knife knob lamp lantern laptop lens letter light lid lock machine magazine
magnet map mat mattress menu meter microphone microwave mirror mug napkin needle newspaper notebook nightstand
ornament oven page paint painting pan paper pen pencil phone photo photograph picture piano pillow pipe plastic plate
plug pole poster pot printer projector quilt radio razor receipt refrigerator remote ribbon rope rug saucer saw
scissors screen screw sculpture sheet shovel skateboard soap sofa speaker spoon stand sticker stool stove straw string
switch table tablet tape teapot telephone television thermometer tissue toaster tool toothbrush toothpaste torch toy
trash tray tripod trophy tub tube tv vase video violin wire
balloon baseball basket basketball bat birthday camp celebration ceremony circus concert dance exercise festival fight
football frisbee game golf guitar hockey holiday kite match meeting music net paddle parade party picnic play puzzle
race racket racquet rodeo show skate ski slope snowboard soccer sport surfboard swing tennis tournament trick vacation
volleyball wedding
"""
_QUALITIES = """
red orange yellow green blue purple pink brown black white gray grey golden silver tan beige maroon turquoise teal
violet navy crimson lavender ivory magenta cyan scarlet colorful striped spotted plaid checkered bright dark pale dim
shiny dull clear blurry transparent
wooden metal metallic glassy leather cotton rubber concrete marble steel brass copper ceramic clay velvet silk woolen
furry fluffy fuzzy hairy smooth rough soft hard wet dry dirty clean dusty muddy snowy icy rusty rotten ripe fresh frozen
fried baked grilled roasted sliced chopped raw spicy sweet sour salty bitter hot cold warm cool
big small large little tiny huge giant tall short long wide narrow thick thin deep shallow high low heavy light full
empty open closed broken round square flat curved straight sharp pointed crooked
old new young ancient modern antique vintage rustic fancy plain simple elegant ornate decorated
happy sad angry calm excited bored tired sleepy scared afraid worried lonely proud shy nervous surprised confused
cheerful joyful peaceful gentle friendly playful curious brave lovely beautiful pretty cute ugly scary funny serious
strange famous delicious tasty lazy busy crowded quiet loud noisy wild tame dangerous safe poor rich elderly male female
sunny cloudy rainy foggy stormy windy tropical rural urban suburban outdoor indoor sandy rocky grassy leafy
good great nice bad terrible awful perfect wonderful amazing
one two three four five six seven eight nine ten eleven twelve dozen hundred thousand single double several many few
pair bunch pile stack row line piece slice
morning afternoon evening night noon midnight day dusk dawn summer winter autumn spring season
left right top bottom middle center corner edge side front behind above below under over near beside between inside
outside around across along against toward
yes no maybe true false
"""
_ACTIONS = """
sit stand walk run jump ride drive fly swim sail surf climb crawl slide fall drop throw catch kick hit pull push carry
hold lift lean lie sleep rest wake wait watch look stare gaze smile laugh cry talk speak shout sing dance play read
write draw paint cook bake fry boil cut chop eat drink bite chew lick feed pour serve wash clean brush wipe dry wear
tie fold hang place put pick reach grab touch point wave hug kiss pet shake greet pose gather meet visit shop sell buy
work build fix repair dig plant grow bloom graze roam chase hunt fight race compete travel cross enter leave arrive park
stop turn spin roll bounce float dive splash row paddle pedal balance stretch bend kneel squat bow hide seek open close
shine glow burn melt freeze grill decorate celebrate cheer march perform teach learn study type call text photograph
film record view
"""
_STOP = """
a about after again all also although always am an and any anyone anything are aren as at away be became because been
before being both but by came can cannot come could did do does doing don done down during each either else enough
etc even ever every everyone everything far for from further gave get gets getting give given go goes going gone got
had has have having he hence her here hers herself him himself his how however i if in indeed instead into is isn it
its itself just keep kept kind know last least less let lets like likely made make makes making may me mean might more
most much must my myself neither never next nobody none nor not nothing now of off often on once only onto or other
others otherwise our ours ourselves out own per perhaps quite rather really said same say says see seem seems seen
shall she should since so some someone something sometimes somewhere soon still such take taken than that the their
theirs them themselves then there therefore these they thing things this those though through thus till to together
too took unless until up upon us use used uses using usually very via want was way we well went were what whatever
when where whether which while who whole whom whose why will with within without won would yet you your yours yourself
"""


@cache
def english_words() -> frozenset[str]:
    """The base forms of the list."""
    return frozenset(f"{_NOUNS} {_QUALITIES} {_ACTIONS}".split())


@cache
def stop_words() -> frozenset[str]:
    return frozenset(_STOP.split())


def read_words(path: Path | str) -> frozenset[str]:
    """Words of a text file, one or more a line, `#` starts a comment; lower case.

    Raises:
        FileNotFoundError: no such file. ValueError: no word in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no word list there")
    lines = path.read_text(encoding="utf-8").splitlines()
    words = frozenset(word.lower() for line in lines for word in line.split("#")[0].replace(",", " ").split())
    if not words:
        raise ValueError(f"{path}: no word in it; give one a line")
    return words


def is_listed(word: str, listed: frozenset[str]) -> bool:
    """Whether the word or the word it is inflected from is listed."""
    return any(form in listed for form in base_forms(word))


def base_forms(word: str) -> list[str]:
    """The word, and what it may be an inflection of: cats, boxes, berries, walking, running, baked, softly."""
    found = [word]
    for ending, replacements in _ENDINGS:
        stem = word[: -len(ending)]
        if word.endswith(ending) and len(stem) >= 3:
            found += [stem + replacement for replacement in replacements]
            if len(stem) > 3 and stem[-1] == stem[-2] and ending not in ("s", "es", "ies"):
                found.append(stem[:-1])
    return found


_ENDINGS = (
    ("ies", ("y",)),
    ("es", ("", "e")),
    ("s", ("",)),
    ("ing", ("", "e")),
    ("ed", ("", "e")),
    ("er", ("", "e")),
    ("est", ("", "e")),
    ("ly", ("",)),
)
