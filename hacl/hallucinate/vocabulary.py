"""The default lexicon for captions of photographs: attributes, numbers, relations and actions (our own lists)."""

from __future__ import annotations

from functools import cache

from hacl.hallucinate.lexicon import AttributeSet, Lexicon
from hacl.hallucinate.vocabulary_exchanges import alike_words, modifiers, noun_groups, prepositions, verb_groups
from hacl.hallucinate.vocabulary_objects import hypernyms, object_kinds, scenes, settings
from hacl.hallucinate.vocabulary_phrases import PATHS, phrase_rules, third_persons


def _set(text: str) -> frozenset[str]:
    return frozenset(word.replace("_", " ") for word in text.split())


_ALIKE_COLOURS = (
    _set("brown tan beige golden"), _set("grey gray silver"), _set("yellow gold golden blonde orange"),
    _set("red maroon burgundy pink orange"), _set("purple violet lavender pink"), _set("blue teal turquoise navy"),
    _set("white cream"), _set("black dark navy"),
)  # fmt: skip
_ANIMALS = _set("animal kitty kitten puppy")
_CLOTHES = _set(
    "shirt jacket dress hat coat tie shoe short helmet cap sweater skirt suit scarf vest hoodie jersey t-shirt glove "
    "sock uniform outfit wetsuit top blouse robe backpack handbag suitcase umbrella surfboard skateboard "
    "snowboard kite frisbee"
)
_WARES = _set(
    "car bus truck train motorcycle bicycle van boat airplane bench couch chair wall tile door curtain blanket rug "
    "carpet towel pillow bowl cup plate vase mug bottle toothbrush box bag balloon flag tent sign house building "
    "cabinet counter countertop tablecloth cloth napkin ribbon fire_hydrant hydrant wagon cart fence toy scooter bed "
    "sheet comforter clock refrigerator fridge phone laptop tray desk table ball ribbon pole basket sink toilet"
)
_MATERIAL_NOUNS = _set("table bench chair fence floor door desk box cabinet shelf stool bridge dresser bowl tray pole")


_UNCOLOURED = _set(
    "person people man woman boy girl child kid lady guy men women couple hair beard wine pepper onion rice bread meat "
    "light photo photograph picture image eye skin juice tea bean cabbage apple field grass sky water lake river bean "
    "leaf food egg sauce board cheese sugar"
)


def _opposites(text: str) -> dict[str, tuple[str, ...]]:
    """ "big=small,tiny; ..." -> value -> values."""
    pairs = (item.split("=") for item in text.split(";") if item.strip())
    return {old.strip(): tuple(new.strip().split(",")) for old, new in pairs}


def _state(name: str, text: str, nouns: str | None = None, not_nouns: str = "") -> AttributeSet:
    table = _opposites(text)
    return AttributeSet(name, tuple(table), (), _set(nouns) if nouns else None, _set(not_nouns), table)


def _attributes() -> tuple[AttributeSet, ...]:
    def colour(words: str, nouns: frozenset[str]) -> AttributeSet:
        return AttributeSet("colour", tuple(words.split()), _ALIKE_COLOURS, nouns)

    return (
        colour("black white brown grey", _ANIMALS),
        colour("black brown blonde red grey", _set("hair beard")),
        colour("red blue green yellow black white pink purple orange brown grey", _CLOTHES | _WARES),
        colour("green red yellow", _set("apple pepper traffic_light light")),
        colour("green brown yellow", _set("grass field leaf bush pasture")),
        colour("blue grey", _set("sky")),
        colour("blue green brown", _set("water lake river pond")),
        AttributeSet(
            "colour",
            tuple("red blue green yellow black white pink purple orange brown grey".split()),
            _ALIKE_COLOURS,
            None,
            _UNCOLOURED | _ANIMALS | _CLOTHES | _WARES,
        ),
        _state(
            "size",
            "big=small; large=small; huge=tiny,small; giant=tiny,small; small=large,big; tiny=large,huge; "
            "gigantic=tiny; little=big,large; enormous=tiny",
            not_nouns="boy girl child kid man woman baby bit brother sister lady guy person player group way part",
        ),
        _state("length", "long=short; short=long", "train bus hair table bench couch board skirt dress line road"),
        _state("height", "tall=short; short=tall", "man woman building tree tower giraffe lady grass guy"),
        _state(
            "age",
            "young=elderly,old; old=young; elderly=young; older=younger; younger=older",
            "man woman couple lady guy",
        ),
        _state("age", "young=adult,old; baby=adult; adult=baby", "elephant zebra giraffe cow horse sheep bear"),
        _state(
            "age",
            "old=new,modern; new=old; antique=modern; modern=old; vintage=modern",
            "car truck train building house bus motorcycle bicycle boat airplane clock bridge tower phone kitchen",
        ),
        AttributeSet(
            "material", ("wooden", "metal", "plastic", "glass", "stone"), (_set("metal steel"),), _MATERIAL_NOUNS
        ),
        _state("wet", "wet=dry; dry=wet", "street road sidewalk dog ground sand hair grass pavement floor"),
        _state("clean", "clean=dirty; dirty=clean", "bathroom kitchen toilet room sink car truck dish floor plate dog"),
        _state(
            "order",
            "messy=tidy; cluttered=tidy,neat; neat=messy; tidy=messy",
            "room desk kitchen bed office table living bedroom",
        ),
        _state("open", "open=closed; closed=open", "window door laptop umbrella suitcase book box luggage oven"),
        _state(
            "full",
            "empty=crowded,busy; crowded=empty,deserted; busy=empty,quiet,deserted",
            "street road beach room restaurant station sidewalk intersection park train bus airport kitchen",
        ),
        _state(
            "weather",
            "sunny=rainy,foggy; rainy=sunny; cloudy=sunny; foggy=sunny; snowy=sunny; clear=cloudy,stormy; "
            "overcast=sunny",
            "day afternoon morning sky evening weather",
        ),
        _state(
            "ground",
            "snowy=grassy,sandy; grassy=sandy,snowy; sandy=grassy; muddy=grassy",
            "hill slope field mountain area beach path park plain hillside trail",
        ),
        _state("taste", "striped=plain; plain=striped; floral=striped", "shirt tie dress umbrella couch blanket"),
        _state("cooked", "cooked=raw; raw=cooked; sliced=whole; baked=raw", "meat food carrot vegetable apple chicken"),
        _state("sex", "male=female; female=male", "skier surfer player skateboarder snowboarder rider"),
        _state(
            "other",
            "golden=black,silver; gold=black,silver; tan=green,blue; beige=green,blue; colorful=grey,plain; "
            "deserted=crowded; flat=steep; steep=flat; brick=wooden; concrete=wooden; paved=dirt; shiny=rusty; "
            "rusty=shiny; dark=bright; bright=dark; narrow=wide; wide=narrow; round=square; square=round; thin=thick; "
            "thick=thin; hot=cold; cold=hot; fresh=frozen,rotten; frozen=fresh; ripe=unripe; public=private; "
            "indoor=outdoor; outdoor=indoor; fancy=plain; happy=sad; sad=happy; double=single; single=double; "
            "left=right; right=left; curved=straight; lush=dry; quiet=busy; rocky=sandy; hilly=flat; wild=tame; "
            "forested=sandy; leafy=bare; bare=leafy; wooded=sandy; fluffy=bald; furry=bald; ornate=plain; "
            "decorative=plain; simple=ornate; cooked=raw; boiled=fried; fried=boiled; grilled=raw; sliced=whole; "
            "sunny=rainy; rainy=sunny; cloudy=sunny; snowy=sandy,grassy; grassy=sandy,snowy; sandy=grassy,snowy; "
            "empty=full,crowded; full=empty; crowded=empty; busy=quiet; open=closed; closed=open; wet=dry; dry=wet; "
            "clean=dirty; dirty=clean; messy=tidy; cluttered=tidy; neat=messy; old=new,modern; new=old; modern=old; "
            "antique=modern; vintage=modern; wooden=metal,plastic,stone; metal=wooden,plastic; plastic=wooden,metal; "
            "glass=wooden,metal; stone=wooden,metal; striped=plain; floral=striped; young=old,elderly; baby=adult; "
            "adult=baby; long=short; short=long,tall; tall=short; deep=shallow; smiling=frowning; "
            "male=female; female=male; gray=blue,green; grey=blue,green; electric=wooden; paper=plastic,metal; "
            "different=identical; identical=different; similar=different; various=identical; assorted=identical; "
            "flooded=dry; trapped=free; captive=wild; frayed=new; homemade=frozen; contemporary=antique; "
            "commercial=private; illuminated=dark; tiled=carpeted; shirtless=bearded; packed=empty; "
            "stacked=scattered; heavy=light; "
            "warm=cold; high=low; low=high; top=bottom; bottom=top; front=back; back=front; major=minor; first=last; "
            "last=first; "
            "formal=casual; casual=formal; expert=novice; professional=amateur; whole=half; colored=grey; "
            "colored=black; grassy=sandy; hardwood=carpeted; blond=dark; windy=calm; tropical=snowy; healthy=fried; "
            "unmade=tidy; vacant=crowded; giant=tiny; elderly=young; multicolored=grey; multiple=two; metallic=wooden; "
            "blonde=dark; bald=bearded; bearded=bald; decorated=plain; calm=rough; rough=calm; upper=lower; "
            "miniature=life-sized; whimsical=plain; appealing=rotten; elegant=shabby; hearty=tiny; "
            "summer=winter; winter=summer; electric=steam; leafless=leafy; grown=baby; varied=identical; "
            "soft=hard; rustic=modern; sharp=dull; rectangular=round; oval=square; shallow=deep",
            not_nouns="time boy girl",
        ),
        _state("skill", "calm=rough; rough=calm", "water ocean sea wave lake"),
    )


_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_VAGUE = {"a couple of": 2, "a pair of": 2, "several": 4, "a few": 3, "many": 5, "a group of": 3, "a bunch of": 4}
_INSERTIONS = {
    "person": ("with {np}", "near {np}", "next to {np}", "behind {np}"),
    "default": ("with {np}", "near {np}", "next to {np}", "with {np}"),
}
_FOLLOWERS = (
    _set(
        "on in at near next by under beside behind with and is are was were that which who while in inside outside "
        "over above below from to into onto of through along across around against as sits sit stands stand has have "
        "lying during or up down off towards between atop underneath"
    )
    | PATHS
)
_ADJECTIVES = _set(
    "black white brown grey gray red blue green yellow orange pink purple silver gold tan colorful big large small "
    "little huge tiny tall short long old new young wooden metal plastic glass stone clean dirty wet dry open closed "
    "empty full single lone other different beautiful cute nice pretty cluttered messy modern antique vintage dark "
    "bright striped elderly older younger adult fluffy furry"
)
# Where one holds, the other may hold as well.
_ALIKE = (
    _set("man guy male gentleman father dad him he his boy men boys himself husband groom fireman policeman"),
    _set("woman lady female mother mom her she girl women girls herself wife bride waitress"),
    _set("under beneath underneath below"),
    _set("above over"),
    _set("behind back background"),
    _set("front foreground"),
    _set("inside indoors indoor within"),
    _set("outside outdoors outdoor"),
    _set("beside next near by alongside close"),
    _set("on atop onto"),
    _set("two couple pair both double twin"),
    _set("three trio several few"),
    _set("four several many"),
    _set("five several many"),
    _set("grey gray silver"),
    _set("big large huge giant gigantic enormous tall oversized"),
    _set("small tiny little miniature mini toy short"),
    _set("old elderly older antique vintage ancient rusty classic"),
    _set("young younger baby"),
    _set("crowded busy full many crowd people"),
    _set("empty deserted quiet vacant"),
    _set("sunny clear bright blue"),
    _set("cloudy overcast stormy rainy foggy dark grey gray"),
    _set("wooden wood hardwood"),
    _set("closed shut"),
    _set("red maroon burgundy"),
    _set("brown tan beige wooden wood"),
    _set("modern new contemporary"),
    _set("dirty messy cluttered filthy muddy"),
    _set("clean tidy neat"),
    _set("sliced cut half slice"),
)
_END_NOUNS = _set(
    "table street road field beach room kitchen bathroom bed desk counter plate grass water wall building fence tree "
    "sidewalk court floor window river lake snow city house yard sand track platform box park hill path tray basket"
)


@cache
def default_lexicon() -> Lexicon:
    """The lexicon for captions of everyday photographs, over the 80 COCO categories."""
    return Lexicon(
        objects=object_kinds(),
        attributes=_attributes(),
        phrases=phrase_rules(),
        numbers=_NUMBERS,
        vague_numbers=_VAGUE,
        word_swaps={
            "man": ("woman",),
            "woman": ("man",),
            "boy": ("girl",),
            "girl": ("boy",),
            "lady": ("man",),
            "guy": ("woman", "girl"),
        },  # fmt: skip
        hypernyms=hypernyms(),
        settings=settings(),
        scenes=scenes(),
        selects=_selects(),
        agents=_agents(),
        adjectives=_ADJECTIVES,
        followers=_FOLLOWERS,
        alike=(*_ALIKE, *alike_words()),
        insertions=_INSERTIONS,
        end_nouns=_END_NOUNS,
        noun_groups=noun_groups(object_kinds().values()),
        prepositions=prepositions(),
        verb_groups=verb_groups(third_persons()),
        third_persons=third_persons(),
        modifiers=modifiers(),
    )


def _selects() -> dict[str, frozenset[str]]:
    food = _set("banana apple orange sandwich carrot hot_dog pizza donut cake")
    ridden = _set("bicycle motorcycle horse elephant skateboard surfboard snowboard bus train boat cow")
    driven = _set("car bus truck motorcycle train boat")
    seats = _set("bench couch bed chair")
    boards = _set("skateboard surfboard snowboard bicycle motorcycle horse elephant")
    held = _set("cup bottle bowl wine_glass")
    inside = _set("car truck bus train boat airplane bowl cup vase suitcase backpack sink oven microwave refrigerator")
    rooms = _set("bowl cup vase sink oven microwave refrigerator")
    none: frozenset[str] = frozenset()
    table = {
        "eating": food, "eats": food, "eat": food, "baking": _set("pizza cake"), "biting": food,
        "riding": ridden, "rides": ridden, "ride": ridden, "driving": driven, "drives": driven, "drive": driven,
        "flying": _set("kite airplane"), "flies": _set("kite airplane"), "fly": _set("kite airplane"),
        "wearing": _set("backpack"), "wears": _set("backpack"), "playing": none, "swinging": none, "swings": none,
        "throwing": _set("frisbee sports_ball"), "throws": _set("frisbee sports_ball"),
        "catching": _set("frisbee sports_ball"), "catch": _set("frisbee sports_ball"),
        "kicking": none, "hitting": none, "hit": none, "hits": none, "cutting": food, "slicing": food,
        "on": seats | boards | _set("laptop cell_phone bus train boat oven"), "onto": seats | boards,
        "in": inside, "into": inside, "inside": inside, "of": none, "at": none, "through": none, "over": none,
        "under": _set("bench bed chair umbrella couch"), "brushing": none, "reading": _set("book"), "using": none,
        "from": rooms, "out": none, "talking": none, "grazing": none, "petting": _set("cat dog horse sheep cow"),
        "as": none, "like": none, "called": none, "drinking": none, "working": none,
        "of:": held,
    }  # fmt: skip
    return table


def _agents() -> dict[str, frozenset[str]]:
    fliers, beasts = _set("airplane bird kite"), _set("horse sheep cow elephant zebra giraffe")
    vehicles = _set("car bus truck motorcycle bicycle train")
    table = {"flying": fliers, "flies": fliers, "fly": fliers, "perched": _set("bird cat"), "grazing": beasts}
    moving = ("driving", "drives", "parked", "traveling", "travels", "stopped", "driven")
    return table | {word: vehicles | _set("boat airplane") for word in moving}
