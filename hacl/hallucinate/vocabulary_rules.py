"""Phrases about where things are and what is being done, and what each becomes (our own table)."""

# type | phrase | becomes | nouns that must follow | subject groups
PHRASES = """
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
relation | has a | lacks a | |
relation | has an | lacks an | |
relation | have a | lack a | |
relation | has two | lacks | |
relation | in the air | near the ground | | person vehicle aircraft toy animal
relation | in the sky | near the ground | | aircraft toy animal
relation | through the air | along the ground | |
relation | filled with | surrounded by,next to | |
relation | covered in | surrounded by,next to | |
relation | covered with | surrounded by,next to | |
relation | covered by | next to,far from | |
relation | topped with | next to,surrounded by | |
relation | full of | surrounded by,next to | |
relation | surrounded by | on top of,far from,covered with | |
relation | decorated with | next to | |
relation | attached to | next to,far from | |
relation | connected to | next to,far from | |
action | showing off | hiding,putting away | | person
action | reaching for | walking away from,pushing away | | person animal
action | picking up | putting down,dropping | | person
action | lifting up | putting down,dropping | | person
action | holding up | putting down,dropping | | person
action | putting on | taking off | | person
action | getting on | getting off | | person
action | coming out of | going into | |
action | walking out of | running into,climbing into | |
action | walk out of | run into,climb into | |
action | getting out of | climbing into | |
action | leaning over | hiding behind,sitting under | | person
action | leaning on | running past | | person
action | pulling up to | driving away from | | vehicle
action | pulling into | driving away from | | vehicle
action | passing by | stopped by | | vehicle bike
action | waiting for | running from,walking past | | person
action | doing tricks | taking a break | | person
action | performing a trick | taking a break | | person
action | performing tricks | taking a break | | person
action | posing for a picture | dancing in a circle | | person
action | pose for a picture | dance in a circle | | person
action | crossing | sitting beside,standing beside | street road | person
action | giving each other a hug | chasing each other | |
action | pick up | drop off | passenger people person student child |
action | cutting up | decorating,eating | cake food vegetable carrot fruit meat pizza | person
action | playing on | repairing,cleaning | computer laptop phone | person
action | talks on | texts on,plays games on | phone cell_phone cellphone | person
action | drives down | stops on,parks on | street road highway | vehicle bike
action | travels down | stops on | street road highway track | vehicle
action | goes down | stops on | street road highway track | vehicle
action | go down | stop on | street road highway track | vehicle
action | drive down | stop on | street road highway | vehicle bike
action | going by | parked by | | vehicle bike
action | goes by | stops by | | vehicle bike
action | stuck in | driving through | traffic | vehicle
action | crowd | leave | street road | vehicle bike person
action | nursing from | running away from | | animal
action | being made | being eaten,being thrown away | | food meal
action | being cut | being eaten,being thrown away | | food meal
action | being eaten | being made,being thrown away | | food meal
action | being cooked | being eaten,being thrown away | | food meal
action | to be cut | to be baked,to be thrown away | | food meal
action | to be cooked | to be eaten,to be thrown away | | food meal
action | to be eaten | to be cooked,to be thrown away | | food meal
action | follows through | sits down | | person
action | making their way | sleeping together | | animal
action | make their way through | sleep beside | street road field | animal
action | parked on | driving along | end edge shore beach | vehicle
relation | accompanied by | far from,hidden from | |
relation | followed by | far from,hidden from | |
relation | blocked by | next to,far from | |
relation | leashed to | far from | |
relation | lined with | far from | |
relation | detached from | attached to | |
relation | sticking out of | hidden inside | |
relation | protruding from | hidden inside | |
relation | hanging from | lying below,lying under | |
relation | growing from | lying next to | |
relation | made of | placed next to,surrounded by | |
relation | stuffed with | next to,placed on top of | |
relation | in the bowl | next to the bowl,under the bowl | |
relation | on the outside | on the inside | |
attribute | stainless steel | wooden,plastic | |
attribute | barbed wire | wooden | fence |
attribute | cut in half | left whole | |
attribute | close up picture | distant picture | |
attribute | close up photo | distant photo | |
attribute | close up view | distant view | |
attribute | close up shot | distant shot | |
attribute | close up image | distant image | |
"""
