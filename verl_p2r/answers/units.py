# SPDX-License-Identifier: Apache-2.0
"""The units and currencies of numbers, and the words that multiply a number [ours]."""

import re

# A spelling listed under two units may mean either: "$5" is any country's dollar, "5°" an angle or a temperature.
_UNITS = {
    "metre": "m meter meters metre metres 米 公尺 メートル 미터",
    "kilometre": "km kms kilometer kilometers kilometre kilometres 公里 千米 キロメートル キロ 킬로미터",
    "centimetre": "cm cms centimeter centimeters centimetre centimetres 厘米 公分 センチ センチメートル 센티미터",
    "millimetre": "mm millimeter millimeters millimetre millimetres 毫米 ミリ",
    "micrometre": "μm um micrometer micrometers micrometre micrometres micron microns 微米",
    "nanometre": "nm nanometer nanometers nanometre nanometres 纳米",
    "inch": 'in inch inches " 英寸',
    "foot": "ft foot feet ' 英尺",
    "yard": "yd yds yard yards",
    "mile": "mi mile miles 英里",
    "pixel": "px pixel pixels 像素",
    "gram": "g gm gms gram grams gramme grammes 克 グラム 그램",
    "kilogram": "kg kgs kilo kilos kilogram kilograms 千克 公斤 キログラム 킬로그램",
    "milligram": "mg milligram milligrams 毫克",
    "tonne": "ton tons tonne tonnes 吨 トン 톤",
    "pound": "lb lbs pound pounds 磅",
    "ounce": "oz ounce ounces 盎司",
    "second": "s sec secs second seconds 秒 秒钟 秒間 초",
    "millisecond": "ms millisecond milliseconds msec 毫秒",
    "minute": "min mins minute minutes 分钟 分鐘 分 分間 분",
    "hour": "h hr hrs hour hours 小时 小時 时 時間 시간",
    "day": "day days 天 日 日間 일",
    "week": "week weeks wk wks 周 週 星期 週間 주",
    "month": "month months mo 个月 個月 月 ヶ月 か月 개월",
    "year": "year years yr yrs 年 岁 歲 歳 years-old y.o 년 살 세",
    "o'clock": "o'clock 点 點 时 時",
    "a.m.": "am a.m",
    "p.m.": "pm p.m",
    "litre": "L liter liters litre litres 升 公升 リットル 리터",
    "millilitre": "ml milliliter milliliters millilitre millilitres cc 毫升",
    "gallon": "gal gallon gallons",
    "cup": "cup cups 杯",
    "degree": "° deg degs degree degrees 度 도",
    "celsius": "° degree degrees °c C celsius centigrade degrees-celsius degree-celsius degrees-c 度 摄氏度 ℃ 도",
    "fahrenheit": "° degree degrees °f F fahrenheit degrees-fahrenheit degree-fahrenheit degrees-f 华氏度",
    "kelvin": "kelvin kelvins",
    "radian": "rad rads radian radians",
    "percent": "% percent per-cent pct percentage 퍼센트",
    "per mille": "‰ permille",
    "percentage point": "percentage-point percentage-points pp",
    "US dollar": "$ usd us$ dollar dollars buck bucks us-dollars 美元 美金",
    "other dollar": "$ dollar dollars 元 hkd hk$ 港元 港币 aud a$ cad c$ nt$ twd 新台币",
    "cent": "¢ cent cents",
    "euro": "€ eur euro euros 欧元",
    "sterling": "£ gbp pound pounds quid 英镑",
    "penny": "pence penny",
    "yuan": "¥ cny rmb yuan 元 元人民币 块 块钱 圆",
    "yen": "¥ jpy yen 円 日元 엔",
    "rupee": "₹ inr rs rupee rupees",
    "won": "₩ krw won 원",
    "rouble": "₽ rub ruble rubles rouble roubles",
    "real": "r$ brl",
    "hertz": "hz hertz",
    "kilohertz": "khz",
    "megahertz": "mhz",
    "gigahertz": "ghz",
    "decibel": "db decibel decibels",
    "volt": "V volt volts",
    "ampere": "A amp amps ampere amperes",
    "watt": "W watt watts",
    "kilowatt": "kw kilowatt kilowatts",
    "kilowatt hour": "kwh",
    "ohm": "ω ohm ohms",
    "joule": "J joule joules",
    "calorie": "cal calorie calories",
    "kilocalorie": "kcal",
    "newton": "N newton newtons",
    "pascal": "pa pascal pascals",
    "kilopascal": "kpa",
    "bar": "bar bars",
    "byte": "byte bytes",
    "kilobyte": "kb",
    "megabyte": "mb",
    "gigabyte": "gb",
    "terabyte": "tb",
    "bit": "bit bits",
    "mole": "mol mole moles",
    "revolution per minute": "rpm",
    "beat per minute": "bpm",
    "knot": "knot knots",
    "hectare": "ha hectare hectares 公顷",
    "acre": "acre acres",
    "mu": "亩",
    "point": "point points pt pts 分 점",
    "time": "time times 次 回 遍 趟 번",
}
# Counted things act as units too: persons, events, and the 80 objects of COCO.
_COUNTED = """
    person/people/persons/人/名/位/个人/人数/명 man/men woman/women boy/boys girl/girls child/children kid/kids
    adult/adults baby/babies player/players student/students dancer/dancers worker/workers athlete/athletes
    passenger/passengers spectator/spectators singer/singers actor/actors character/characters team/teams group/groups
    object/objects item/items thing/things piece/pieces/块/片 unit/units part/parts type/types kind/kinds/种/種
    colour/color/colours/colors shape/shapes letter/letters/字 word/words number/numbers digit/digits line/lines
    step/steps/步 frame/frames scene/scenes shot/shots clip/clips video/videos image/images picture/pictures
    event/events action/actions round/rounds lap/laps turn/turns goal/goals floor/floors/层/層/階 level/levels
    page/pages/页 room/rooms door/doors window/windows table/tables wheel/wheels leg/legs arm/arms hand/hands
    finger/fingers eye/eyes head/heads side/sides corner/corners edge/edges square/squares circle/circles
    triangle/triangles cube/cubes cylinder/cylinders sphere/spheres ball/balls block/blocks box/boxes card/cards/张/枚
    coin/coins flag/flags flower/flowers/朵 tree/trees/棵 leaf/leaves rock/rocks stone/stones fish/fishes
    animal/animals/只/隻/匹/头/頭/마리 duck/ducks chicken/chickens egg/eggs cat/cats dog/dogs horse/horses sheep
    cow/cows elephant/elephants bear/bears zebra/zebras giraffe/giraffes bird/birds bicycle/bicycles bike/bikes
    car/cars/辆/輛/台/대 vehicle/vehicles motorcycle/motorcycles airplane/airplanes plane/planes bus/buses train/trains
    truck/trucks boat/boats light/lights hydrant/hydrants sign/signs meter/meters bench/benches backpack/backpacks
    umbrella/umbrellas/把 handbag/handbags tie/ties suitcase/suitcases frisbee/frisbees ski/skis snowboard/snowboards
    kite/kites bat/bats glove/gloves skateboard/skateboards surfboard/surfboards racket/rackets bottle/bottles/瓶/本
    glass/glasses cup/cups fork/forks knife/knives spoon/spoons bowl/bowls/碗 banana/bananas apple/apples
    sandwich/sandwiches orange/oranges broccoli carrot/carrots pizza/pizzas donut/donuts cake/cakes chair/chairs
    couch/couches plant/plants bed/beds toilet/toilets tv/tvs laptop/laptops mouse/mice remote/remotes
    keyboard/keyboards phone/phones microwave/microwaves oven/ovens toaster/toasters sink/sinks
    refrigerator/refrigerators book/books clock/clocks vase/vases scissors bear/bears drier/driers
    toothbrush/toothbrushes hat/hats shirt/shirts shoe/shoes bag/bags 个 個 개 つ 条 條 件 颗 顆
"""

_ALIASES = {
    "mph": "mile/hour",
    "kph": "km/h",
    "kmh": "km/h",
    "kmph": "km/h",
    "fps": "frame/second",
    "bps": "bit/second",
}

Unit = tuple[tuple[frozenset[str], int], ...]
"""The factors of a unit, each with its possible meanings and its power; m/s² is `(({metre}, 1), ({second}, -2))`."""

_PART = re.compile(r"(?:(square |sq\.? |平方)|(cubic |cu\.? |立方))?([^\d^]+?)\s?\^?([23])?")

UNITS: dict[str, frozenset[str]] = {}
"""Spelling (lower case except for single letters, hyphens for spaces) → the units that it may mean."""
for _name, _spellings in [
    *_UNITS.items(),
    *((word.split("/")[0], word.replace("/", " ")) for word in _COUNTED.split()),
]:
    for _spelling in _spellings.split():
        UNITS[_spelling] = UNITS.get(_spelling, frozenset()) | {_name}

CURRENCIES = (
    "us$",
    "hk$",
    "nt$",
    "a$",
    "c$",
    "r$",
    "$",
    "€",
    "£",
    "¥",
    "₹",
    "₩",
    "₽",
    "¢",
    "usd",
    "eur",
    "gbp",
    "cny",
    "rmb",
    "inr",
    "rs.",
    "rs",
)
"""Currencies that may precede the number, longest first."""

MULTIPLIERS = {
    **dict.fromkeys(("hundred", "hundreds", "百"), 1e2),
    **dict.fromkeys(("k", "thousand", "thousands", "千"), 1e3),
    **dict.fromkeys(("M", "MM", "mn", "million", "millions", "百万", "百萬", "백만"), 1e6),
    **dict.fromkeys(("bn", "billion", "billions", "十亿", "十億", "십억"), 1e9),
    **dict.fromkeys(("tn", "trillion", "trillions", "万亿", "萬億", "兆", "조"), 1e12),
    **dict.fromkeys(("dozen", "dozens"), 12.0),
    **dict.fromkeys(("lakh", "lakhs", "lac", "lacs"), 1e5),
    **dict.fromkeys(("crore", "crores"), 1e7),
    **dict.fromkeys(("万", "萬", "만"), 1e4),
    **dict.fromkeys(("亿", "億", "억"), 1e8),
    **dict.fromkeys(("千万", "千萬", "천만"), 1e7),
}
"""Words that multiply the preceding number; in lower case except for M and MM, because "3 m" is three metres."""


def read_unit(text: str) -> Unit | None:
    """Read a unit; None if the text is not a known unit.

    Args:
        text: The text after a number: `km/h`, `square meters`, `m^2`, `frames per second`, `个`.

    >>> read_unit("km/h") == read_unit("kilometres per hour") == read_unit("kmph"), read_unit("x"), read_unit("million")
    (True, None, None)
    """
    text = text.strip()
    if not text or len(text) > 40:
        return None
    text = _ALIASES.get(text.lower(), text)
    if whole := _named(text):
        return ((whole, 1),)
    factors: list[tuple[frozenset[str], int]] = []
    for part in re.split(r"\s?/\s?|\sper\s", text):
        match = _PART.fullmatch(part)
        unit = _named(match[3]) if match else None
        if match is None or unit is None or (match[4] and (match[1] or match[2])):
            return None
        power = 2 if match[1] else 3 if match[2] else int(match[4] or 1)
        factors.append((unit, -power if factors else power))
    return tuple(factors)


def common_unit(one: Unit, other: Unit) -> Unit | None:
    """Return the unit that both may mean, or None if they conflict.

    >>> common_unit(read_unit("$"), read_unit("dollars")) is not None, common_unit(read_unit("kg"), read_unit("g"))
    (True, None)
    """
    if [power for _, power in one] != [power for _, power in other]:
        return None
    both = tuple((a & b, power) for (a, power), (b, _) in zip(one, other, strict=True))
    return both if all(names for names, _ in both) else None


def _named(text: str) -> frozenset[str] | None:
    text = text.replace(" ", "-")
    return UNITS.get(text) or (UNITS.get(text.lower()) if len(text) > 1 and text not in MULTIPLIERS else None)
