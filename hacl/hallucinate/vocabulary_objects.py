"""Objects of everyday photographs: the 80 COCO categories (names after Lin et al., 2014) with our own words for them.

One line per kind: name | group | words to write | words only recognised, or that imply it | what it may be taken \
for.
"""

from __future__ import annotations

from hacl.hallucinate.lexicon import ObjectKind

_TABLE = """
person | person | man,woman,person | boy girl child kid baby toddler lady guy gentleman human adult teenager teen \
player batter pitcher catcher umpire surfer skier snowboarder skateboarder skater rider biker cyclist bicyclist \
motorcyclist driver passenger pedestrian chef cook worker officer policeman fireman soldier bride groom mother \
father mom dad son daughter student swimmer boarder crowd family audience team spectator male female tourist \
hiker jockey farmer waiter waitress vendor parent friend brother sister couple people |
bicycle | bike | bike,bicycle | cyclist bicyclist biker two_wheeler tricycle cycle | motorcycle skateboard
motorcycle | bike | motorcycle | bike motorbike moped scooter motorcyclist biker motor_cycle motor_bike dirt_bike | \
bicycle car
car | vehicle | car | automobile sedan minivan van taxi cab suv jeep convertible limousine traffic parking_lot | \
truck bus motorcycle
bus | vehicle | bus | minibus coach double_decker doubledecker trolley shuttle | truck train car
truck | vehicle | truck | lorry pickup pick_up trailer van semi fire_engine suv jeep | bus car train
train | vehicle | train | locomotive tram railroad railway subway trolley engine | bus truck boat
boat | vessel | boat | ship canoe kayak sailboat ferry rowboat yacht vessel gondola barge raft dinghy | train \
airplane
airplane | aircraft | airplane,plane | aeroplane jet airliner aircraft jetliner air_plane biplane helicopter | \
boat train kite
traffic light | street_object | traffic light | stoplight traffic_signal street_light stop_light signal light | \
stop_sign
stop sign | street_object | stop sign | street_sign sign road_sign | traffic light,parking meter,fire hydrant
fire hydrant | street_object | fire hydrant | hydrant firehydrant | parking meter,bench,stop sign
parking meter | street_object | parking meter | meter | fire hydrant,bench,stop sign
bench | seat | bench | pew picnic_table seat | chair couch
bird | animal | bird | pigeon seagull gull duck goose parrot owl ostrich penguin crow swan eagle hawk chicken \
rooster turkey pelican peacock flamingo duckling | cat dog
cat | animal | cat | kitten kitty feline pet | dog bird
dog | animal | dog | puppy hound pup poodle terrier dachshund bulldog retriever labrador canine pet | cat bird
horse | animal | horse | pony foal stallion mare colt jockey equestrian donkey mule | cow elephant sheep
sheep | animal | sheep | lamb ram ewe goat wool | cow horse dog
cow | animal | cow | bull cattle calf ox steer livestock buffalo bison | horse sheep
elephant | animal | elephant | pachyderm trunk tusk | giraffe zebra bear
bear | animal | bear | cub grizzly panda polar_bear | elephant dog
zebra | animal | zebra | | giraffe horse elephant
giraffe | animal | giraffe | | zebra elephant horse
backpack | bag | backpack | rucksack knapsack back_pack bag bookbag | handbag suitcase umbrella
umbrella | carried | umbrella | parasol canopy | backpack handbag kite
handbag | bag | handbag,purse | hand_bag bag tote pocketbook clutch | backpack umbrella suitcase
tie | worn | tie | necktie bowtie bow_tie suit uniform tuxedo |
suitcase | bag | suitcase | luggage briefcase baggage bag trunk | backpack handbag
frisbee | toy | frisbee | disc disk frisby | kite sports_ball
skis | sport | | ski skis skier skiing cross-country |
snowboard | sport | snowboard | snowboarder snow_board board snowboarding | skateboard
sports ball | toy | ball | baseball soccer tennis_ball soccer_ball basketball football volleyball tennis golf | \
frisbee
kite | toy | kite | parasail parachute | frisbee umbrella
baseball bat | sport | baseball bat | bat batter baseball batting | tennis_racket
baseball glove | sport | baseball glove | mitt glove baseball catcher pitcher outfielder |
skateboard | sport | skateboard | skate_board skateboarder skater board longboard skateboarding skate skateboards \
| surfboard snowboard bicycle
surfboard | sport | surfboard | surf_board surfer board bodyboard boogie_board surf surfing wave | skateboard boat
tennis racket | sport | tennis racket | racket racquet tennis_racquet tennis | baseball_bat
bottle | tableware | bottle | flask beer wine drink beverage | cup vase
wine glass | tableware | wine glass | wineglass glass goblet wine drink beverage stemware | cup bottle
cup | tableware | cup | mug teacup glass coffee tea drink beverage tumbler | bottle wine_glass bowl
fork | cutlery | fork | utensil silverware cutlery dining_ware chopstick | spoon knife
knife | cutlery | knife | utensil silverware cutlery blade | fork spoon
spoon | cutlery | spoon | utensil silverware cutlery ladle spatula | fork knife
bowl | tableware | bowl | dish salad soup cereal pot | cup vase
banana | food | banana | fruit plantain | apple orange carrot
apple | food | apple | fruit | orange banana
orange | food | orange | fruit tangerine citrus mandarin lemon clementine | apple banana
sandwich | meal | sandwich | burger hamburger sub wrap hoagie panini toast bread bun | pizza hot_dog donut
broccoli | food | | broccoli vegetable salad greens veggie |
carrot | food | carrot | vegetable salad veggie | banana apple
hot dog | meal | hot dog | hotdog sausage frankfurter bun chili_dog | sandwich pizza
pizza | meal | pizza | pie pepperoni crust flatbread | sandwich cake hot_dog
donut | meal | donut,doughnut | pastry dessert bagel dough_nut sweet | cake sandwich
cake | meal | cake | cupcake cheesecake dessert pastry pie brownie muffin birthday sweet | pizza donut
chair | furniture | chair | armchair stool recliner seat seating rocker | couch bench
couch | furniture | couch,sofa | loveseat futon settee seating seat sectional | bed chair
potted plant | plant | potted plant | houseplant house_plant plant flower pot fern foliage bonsai | vase
bed | furniture | bed | bunk crib mattress bedroom headboard | couch
dining table | table | table | dining_table desk counter countertop island coffee_table tabletop |
toilet | fixture | toilet | urinal bidet commode restroom lavatory latrine potty | sink
tv | screen | tv,television | tv_screen flat_screen screen monitor television_set flatscreen display | laptop
laptop | screen | laptop | notebook computer macbook lap_top monitor screen pc | tv book
mouse | desk_item | | mouse computer_mouse computer |
remote | desk_item | remote control | remote controller wii_remote wiimote wii clicker video_game nintendo | \
cell_phone
keyboard | desk_item | keyboard | computer laptop piano key | laptop
cell phone | desk_item | cell phone,phone | cellphone smartphone mobile_phone iphone mobile telephone blackberry \
device | remote book
microwave | appliance | microwave | microwave_oven appliance | oven toaster
oven | appliance | oven | stove range stovetop stove_top appliance cooker | microwave refrigerator
toaster | appliance | toaster | toaster_oven appliance | microwave
sink | fixture | sink | basin washbasin faucet vanity | toilet
refrigerator | appliance | refrigerator,fridge | freezer appliance | oven
book | small | book | magazine novel textbook notebook bookcase bookshelf newspaper paper | laptop cell_phone
clock | small | clock | clock_tower watch timepiece clocktower | vase
vase | small | vase | jar urn pot pitcher flower | clock bowl bottle
scissors | small | | scissors shears |
teddy bear | small | teddy bear | stuffed_bear stuffed_animal teddy plush stuffed_toy doll bear toy | dog cat
hair drier | small | hair dryer | hairdryer blow_dryer hair_drier dryer |
toothbrush | small | toothbrush | tooth_brush brush teeth |
"""

SCENES = """
street: person,car,bus,truck,bicycle,motorcycle,traffic light,stop sign,fire hydrant,parking \
meter,bench,dog,handbag,umbrella
station: person,train,suitcase,bench,backpack,clock,handbag
airport: airplane,truck,person,suitcase,backpack,handbag
shore: person,boat,surfboard,dog,kite,umbrella,bird,bench
park: person,dog,bench,frisbee,bicycle,bird,kite,umbrella,skateboard,sports ball,backpack
snow: person,snowboard,skis,backpack,dog,bench
farm: horse,cow,sheep,dog,bird,truck
safari: elephant,zebra,giraffe,bird
wild: bear,bird
tennis: person,tennis racket,bench,sports ball
baseball: person,baseball bat,baseball glove,bench,sports ball
kitchen: refrigerator,oven,microwave,toaster,sink,bottle,cup,bowl,knife,spoon,dining table,chair,potted plant,clock
meal: dining table,fork,knife,spoon,cup,wine glass,bottle,bowl,cake,pizza,sandwich,carrot,apple,orange,banana,hot \
dog,donut,broccoli
living room: couch,chair,tv,remote,book,vase,potted plant,clock,cat,dog,laptop,teddy bear,person
bathroom: toilet,sink,toothbrush,bottle,hair drier,potted plant,cup
bedroom: bed,book,teddy bear,clock,laptop,cat,dog,chair,tv
desk: laptop,keyboard,cell phone,book,cup,chair,bottle,clock,potted plant,remote,mouse,scissors,tv,backpack
party: person,tie,wine glass,bottle,cell phone,chair,dining table,cake,cup
market: person,banana,apple,orange,carrot,broccoli,handbag,backpack,umbrella,truck
"""

HYPERNYMS = {
    "animal": "bird cat dog horse sheep cow elephant bear zebra giraffe",
    "wildlife": "bird bear elephant zebra giraffe",
    "pet": "cat dog bird",
    "herd": "horse sheep cow elephant zebra giraffe",
    "vehicle": "car bus truck motorcycle bicycle train",
    "transportation": "car bus truck train bicycle motorcycle",
    "traffic": "car bus truck motorcycle",
    "fruit": "banana apple orange",
    "vegetable": "carrot broccoli",
    "veggie": "carrot broccoli",
    "food": "sandwich pizza hot_dog cake donut carrot broccoli banana apple orange",
    "meal": "sandwich pizza hot_dog",
    "lunch": "sandwich pizza hot_dog",
    "dessert": "cake donut",
    "snack": "donut sandwich apple banana",
    "furniture": "chair couch bed dining_table bench",
    "utensil": "fork knife spoon",
    "silverware": "fork knife spoon",
    "dish": "bowl cup",
    "glass": "wine_glass cup bottle vase",
    "container": "bottle cup bowl vase",
    "drink": "bottle cup wine_glass",
    "appliance": "oven microwave toaster refrigerator",
    "electronics": "tv laptop cell_phone keyboard remote",
    "electronic": "tv laptop cell_phone keyboard remote",
    "computer": "laptop keyboard mouse tv",
    "bag": "backpack handbag suitcase",
    "luggage": "backpack handbag suitcase",
    "seat": "chair bench couch",
    "toy": "teddy_bear sports_ball",
    "plant": "potted_plant",
    "flower": "potted_plant vase",
    "board": "skateboard surfboard snowboard",
    "clutter": "book bottle cup bowl",
    "sign": "stop_sign",
}
SETTINGS = {
    "kitchen": "oven refrigerator sink microwave dining_table bowl cup bottle knife",
    "bathroom": "toilet sink",
    "restroom": "toilet sink",
    "street": "car person traffic_light truck bus",
    "road": "car truck",
    "city": "car person bus truck traffic_light",
    "restaurant": "person chair dining_table cup",
    "office": "chair laptop keyboard",
    "desk": "laptop keyboard mouse book cup",
    "bedroom": "bed",
    "room": "chair couch tv bed",
    "dining": "chair cup",
    "store": "person",
    "beach": "person umbrella",
    "game": "person sports_ball",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(name.replace("_", " ") for name in text.split())


def object_kinds() -> dict[str, ObjectKind]:
    """name -> ObjectKind of the table."""
    kinds = {}
    for line in _TABLE.strip().splitlines():
        name, group, words, also, swaps = (part.strip() for part in line.split("|"))
        written = tuple(word.strip() for word in words.split(",") if word.strip())
        swapped = swaps.split(",") if "," in swaps else swaps.split()
        kinds[name] = ObjectKind(
            name,
            group,
            written,
            tuple(word.replace("_", " ") for word in also.split()),
            tuple(swap.strip().replace("_", " ") for swap in swapped),
            bool(written),
        )
    return kinds


def scenes() -> tuple[frozenset[str], ...]:
    """Sets of object names that are photographed together."""
    return tuple(
        frozenset(name.strip() for name in line.split(":")[1].split(",")) for line in SCENES.strip().splitlines()
    )


def hypernyms() -> dict[str, frozenset[str]]:
    """Word -> object names it may stand for."""
    return {word: _names(names) for word, names in HYPERNYMS.items()}


def settings() -> dict[str, frozenset[str]]:
    """Word for a place -> object names to expect there."""
    return {word: _names(names) for word, names in SETTINGS.items()}
