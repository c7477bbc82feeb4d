"""Words for the 80 COCO categories, for CHAIR on photographs (our own list; not the published synonym list).

Category names are those of COCO (Lin et al., 2014). Singular forms only; plurals are found by rule.
"""

from __future__ import annotations

_SYNONYMS = {
    "person": "man woman boy girl child kid baby lady guy player surfer skier snowboarder skateboarder rider "
    "passenger pedestrian chef toddler adult worker crowd",
    "bicycle": "bike",
    "car": "automobile sedan minivan taxi cab suv",
    "motorcycle": "motorbike moped scooter",
    "airplane": "plane aeroplane jet airliner aircraft",
    "bus": "minibus coach",
    "train": "locomotive tram",
    "truck": "lorry pickup",
    "boat": "ship canoe kayak sailboat ferry rowboat",
    "traffic light": "stoplight traffic_signal",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "",
    "bird": "pigeon seagull duck goose parrot owl ostrich penguin",
    "cat": "kitten kitty",
    "dog": "puppy hound",
    "horse": "pony foal",
    "sheep": "lamb",
    "cow": "bull cattle calf ox",
    "elephant": "",
    "bear": "cub grizzly",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack knapsack",
    "umbrella": "parasol",
    "handbag": "purse",
    "tie": "necktie",
    "suitcase": "luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "baseball soccer_ball tennis_ball basketball football volleyball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "mitt baseball_mitt",
    "skateboard": "",
    "surfboard": "",
    "tennis racket": "racket racquet tennis_racquet",
    "bottle": "",
    "wine glass": "wineglass",
    "cup": "mug teacup",
    "fork": "",
    "knife": "",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake cheesecake",
    "chair": "armchair stool",
    "couch": "sofa loveseat",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table desk",
    "toilet": "urinal",
    "tv": "television tv_screen",
    "laptop": "notebook_computer",
    "mouse": "computer_mouse",
    "remote": "remote_control",
    "keyboard": "",
    "cell phone": "cellphone phone smartphone mobile_phone",
    "microwave": "microwave_oven",
    "oven": "stove",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge",
    "book": "",
    "clock": "clock_tower",
    "vase": "",
    "scissors": "",
    "teddy bear": "stuffed_bear",
    "hair drier": "hair_dryer hairdryer",
    "toothbrush": "",
}
# Phrases that hide a word naming an object. "orange" as a colour cannot be told by words alone and is counted.
_NOT_OBJECTS = (
    "baseball field",
    "baseball game",
    "baseball team",
    "football field",
    "basketball court",
    "bus stop",
    "bus station",
    "train station",
    "train track",
    "car park",
    "bird house",
    "toilet paper",
    "table cloth",
    "table tennis",
    "cup holder",
    "orange juice",
    "apple juice",
)


def coco_vocabulary() -> dict[str, str | None]:
    """Word or phrase -> COCO category, for :class:`hacl.evaluation.chair.MentionExtractor`."""
    words: dict[str, str | None] = {phrase: None for phrase in _NOT_OBJECTS}
    for category, synonyms in _SYNONYMS.items():
        words[category] = category
        for word in synonyms.split():
            words[word.replace("_", " ")] = category
    # A player on a field is still a person; the sport in front of it is not a ball.
    words["baseball player"] = words["football player"] = words["tennis player"] = "person"
    return words
