"""Words and sentences of synthetic notes, in the markup of `synthetic`; all written for raymrc.

The marks are the annotation guideline: in the hospital-course sentences, compare two neighbours to see
which verb makes a symptom a Reason and which an ADE.
"""

# One sentence per line, however long.
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from collections.abc import Mapping

STARTS = (
    "ab", "bel", "cor", "dol", "fen", "gal", "ke", "lu", "mi", "ne", "o", "pra", "ri", "su", "ta",
    "ver", "xo", "za", "tel", "var",
)

MIDDLES = (
    "la", "tri", "xe", "fo", "ni", "vo", "ra", "mu", "pi", "ze", "do", "ca", "len", "bu", "so",
)

DRUG_ENDS = (
    "pril", "statin", "mab", "olol", "azole", "cillin", "tide", "gliptin", "parin", "sone", "vir",
    "idine", "amide", "ex", "ora", "ix", "an", "er",
)

NAME_ENDS = (
    "an", "er", "ton", "ski", "ora", "ix", "mond", "ex", "idine", "ley", "sone",
)

SALTS = ("tartrate", "succinate", "sodium", "HCl", "chloride", "ER", "XL")

KNOWN_DRUGS = (
    "aspirin", "warfarin", "heparin", "metoprolol", "lisinopril", "furosemide", "atorvastatin",
    "metformin", "insulin", "prednisone", "vancomycin", "levofloxacin", "ceftriaxone",
    "amiodarone", "digoxin", "morphine", "oxycodone", "acetaminophen", "gabapentin", "lorazepam",
    "haloperidol", "omeprazole", "albuterol", "tacrolimus", "methotrexate", "clopidogrel",
    "hydralazine", "amlodipine", "simvastatin", "sertraline", "phenytoin", "potassium",
    "docusate",
)

UNIT_STEPS = ("0.5", "1", "2", "2.5", "5", "10", "12.5", "20", "25", "40", "50", "75", "100")

COUNTS = (("One", "1"), ("Two", "2"), ("Three", "3"), ("0.5", "0.5"), ("1-2", "1-2"))

# dispensed form, counted unit, route
FORMS = (
    ("Tablet", "Tablet", "PO"),
    ("Tablet", "Tablet", "PO"),
    ("Capsule", "Capsule", "PO"),
    ("Tablet, Delayed Release (E.C.)", "Tablet", "by mouth"),
    ("Solution", "mL", "PO"),
    ("Adhesive Patch, Medicated", "Patch", "Topical"),
    ("Aerosol", "Puff", "Inhalation"),
    ("Ointment", "Appl", "Topical"),
    ("Drops", "Drop", "Ophthalmic"),
    ("Syringe", "Syringe", "Subcutaneous"),
    ("Suppository", "Suppository", "Rectal"),
)

WORDS: Mapping[str, tuple[str, ...]] = {
    "known_drug": KNOWN_DRUGS,
    "symptom": (
        "nausea", "rash", "dizziness", "diarrhea", "confusion", "hypotension", "bradycardia",
        "itching", "headache", "constipation", "somnolence", "hives", "leg swelling",
        "dry cough", "tremor", "acute renal failure", "hyperkalemia", "low platelets",
        "vomiting", "palpitations", "insomnia", "bleeding gums", "muscle pain", "agitation",
        "falls", "fever", "wheezing", "abdominal pain", "elevated liver enzymes",
    ),
    "problem": (
        "hypertension", "atrial fibrillation", "cellulitis", "pneumonia", "urinary tract infection",
        "back pain", "anxiety", "diabetes", "gout", "heart failure", "seizures", "depression",
        "asthma", "reflux", "deep vein thrombosis", "rheumatoid arthritis", "sinusitis",
        "high cholesterol", "transplant rejection", "bacteremia", "migraine",
    ),
    "injury": (
        "thrombocytopenia", "nephrotoxicity", "hepatitis", "neuropathy", "delirium",
        "pancreatitis", "colitis", "hyponatremia", "myopathy", "neutropenia",
    ),
    "duration": (
        "{few} days", "{few} weeks", "{n} days", "two weeks", "one month", "a week",
        "{few} months", "another {few} days", "a total of {n} days", "48 hours",
    ),
    "within": (
        "within {few} days", "the next morning", "on day {few}", "over the following week",
        "after {few} doses", "later", "then",
    ),
    "frequency": (
        "DAILY (Daily)", "BID (2 times a day)", "Q6H (every 6 hours)", "once a day", "at bedtime",
        "QAM (once a day (in the morning))", "TID (3 times a day)", "Q4H (every 4 hours) as needed",
        "every other day", "twice daily", "every 8 hours as needed", "WEEKLY (once a week)",
    ),
    "route": (
        "IV", "PO", "intravenously", "by mouth", "subcutaneously", "intramuscularly",
        "via nebulizer", "sublingually", "per rectum",
    ),
    "loose_form": ("patch", "tablets", "cream", "inhaler", "drip", "eye drops", "suspension"),
    "class": ("opiates", "benzodiazepines", "cocaine", "salicylates", "tricyclics"),
    "service": ("MEDICINE", "SURGERY", "CARDIOLOGY", "NEUROLOGY", "ONCOLOGY"),
    "kin": ("mother", "father", "brother", "sister", "wife", "husband", "son", "daughter"),
}

TERSE_WORDS: Mapping[str, tuple[str, ...]] = {
    **WORDS,
    "known_drug": (
        "asa", "coumadin", "lasix", "vanc", "mtx", "hctz", "abx", "levo", "ctx", "zosyn",
        "plavix", "tylenol", "prednisone", "insulin", "heparin", "ativan", "haldol",
        "dilaudid", "dig", "amio", "metop", "kcl",
    ),
    "symptom": (
        *WORDS["symptom"], "n/v", "aki", "ams", "brbpr", "pruritus", "orthostasis",
        "qt prolongation", "cp", "ha", "le edema", "sob", "hypoglycemia",
    ),
    "problem": (
        *WORDS["problem"], "htn", "afib", "uti", "chf", "dm2", "cap", "copd flare", "dvt",
        "gerd", "hld", "mrsa",
    ),
    "frequency": (
        "qd", "bid", "tid", "q6h prn", "qhs", "nightly", "q12h", "qweek", "prn", "q8h",
        "every other day", "twice daily", "daily",
    ),
    "route": ("iv", "po", "sq", "im", "neb", "sl", "pr", "top"),
    "duration": (
        "{few}d", "{few} days", "{n}d", "{few} wks", "2 wks", "1 mo", "{few} more days",
        "a week", "48h",
    ),
    "loose_form": ("patch", "tabs", "cream", "inh", "gtt", "susp", "caps"),
    "within": ("w/in {few}d", "on day {few}", "after {few} doses", "next am", "then"),
}

COURSES: Mapping[str, tuple[str, ...]] = {
    "ade": (
        "{^she} was started on <Drug|{drug}> for <Reason|{problem}>, but {within} developed <ADE|{symptom}>.",
        "<Drug|{^drug}> was stopped as <ADE|{symptom}> had developed.",
        "<ADE|{^symptom}> improved off <Drug|{drug}>.",
        "<ADE|{^symptom}> came on with <Drug|{drug}> and settled once it was held.",
        "{^she} had <ADE|{symptom}> and <ADE|{symptom}>, both felt to be from <Drug|{drug}>.",
        "The course was complicated by <ADE|<Drug|{drug}>-induced {injury}>, and {she} was switched to <Drug@2|{drug}>.",
        "<ADE|{^symptom}> after <Drug|{drug}> <Dosage|{amount}> <Route|{route}> led us to halve the dose.",
        "{^she} could not tolerate <Drug|{drug}> because of <ADE|{symptom}>.",
        "<Reason@2|<ADE|{^symptom}>> from <Drug|{drug}> was treated with <Drug@2|{drug}> <Route@2|{route}>.",
        "Level of <Drug|{drug}> was {teens} and explained the <ADE|{injury}>.",
        "Team suspected that <Drug|{drug}>, not the {problem}, was behind <ADE|{symptom}>.",
        "Rechallenge with <Drug|{drug}> brought back <ADE|{symptom}> {within}.",
    ),
    "reason": (
        "<Drug|{^drug}> was stopped as <Reason|{symptom}> had resolved.",
        "<Reason|{^symptom}> improved with <Drug|{drug}>.",
        "<Reason|{^symptom}> came on after supper and settled with <Drug|{drug}> <Dosage|{amount}>.",
        "{^she} was given <Drug|{drug}> <Dosage|{amount}> <Route|{route}> for <Reason|{symptom}>, with good effect.",
        "For <Reason|{problem}> {she} stays on <Drug|{drug}> <Dosage|{amount}> <Frequency|{frequency}>.",
        "Because of <Reason|{symptom}> {she} could not do without <Drug|{drug}>.",
        "{^she} had <Reason|{symptom}> and <Reason|{symptom}>, both relieved by <Drug|{drug}>.",
        "<Drug|{^drug}> and <Drug|{drug}> were begun for <Reason|{problem}>.",
        "Team chose <Drug|{drug}> over {drug} for <Reason|{problem}>.",
        "<Reason|{^problem}>: <Drug|{drug}> <Route|{route}> <Frequency|{frequency}>, then <Drug@2|{drug}> <Route@2|{route}>.",
    ),
    "duration": (
        "Treated with <Drug|{drug}> <Dosage|{amount}> <Frequency|{frequency}> for <Duration|{duration}>.",
        "{^she} completed <Duration|{duration}> of <Drug|{drug}> <Route|{route}> for <Reason|{problem}>.",
        "Continue <Drug|{drug}> for <Duration|{duration}>, then stop.",
        "<Drug|{^drug}> taper: <Dosage|{amount}> <Frequency|{frequency}> for <Duration|{duration}>, then <Dosage|{amount}> for <Duration|{duration}>.",
        "After <Duration|{duration}> on <Drug|{drug}>, {she} changed to a <Drug@2|{drug}> <Form@2|{loose_form}>.",
    ),
    "drug": (
        "No {symptom} was seen on <Drug|{drug}>.",
        "{^symptom} was put down to {problem} rather than to <Drug|{drug}>.",
        "Home <Drug|{drug}> was continued without {symptom}.",
        "{^symptom} predated <Drug|{drug}> by {duration}.",
        "{^she} was told that <Drug|{drug}> can cause {symptom}.",
        "<Drug|{^drug}> was held for a heart rate of {teens} and given back at <Dosage|{amount}>.",
        "A <Drug|{drug}> <Form|{loose_form}> was kept on {her} chart.",
        "{^she} received <Dosage|{amount}> of <Route|{route}> <Drug|{drug}> in the emergency room.",
    ),
    "decoy": (
        "{^drug} was considered but never given.",
        "{^she} has never taken {drug}.",
        "{^her} {kin} takes {drug} for {problem}.",
        "The toxicology screen was negative for {class}.",
        "Glucose {hundred} mg/dL, creatinine {tenths} mg/dL, lactate {tenths}.",
        "{^she} reported {symptom} for {duration}, {few} times a day.",
        "Dialysis was done every other day for {duration}.",
        "Dr. {^name} of {^name} Hospital was called and agreed.",
        "The chest film showed no change; a patch of erythema was outlined.",
        "{^she} lost IV access twice but was tolerating food by mouth.",
        "Fingersticks were checked every 6 hours for {duration}.",
        "{^symptom} went away by itself after {duration}.",
        "Oxygen was weaned from {few} L over {duration}.",
        "{^she} weighed {hundred} kg and lost {n} kg in {duration}.",
        "The wound solution and dressing were changed twice daily.",
        "A {^name} catheter was placed and removed after {duration}.",
        "{^she} denied {symptom}, {symptom} or {symptom}.",
        "Potassium was {tenths} and magnesium {tenths} mg/dL on the day of discharge.",
    ),
}

LISTED: Mapping[str, Mapping[str, float]] = {
    "a": {
        "<Drug|{^drug}> {signature}.": 6,
        "<Drug|{^drug}> {signature} for <Duration|{duration}>.": 1,
        "<Drug|{^drug}> {signature} for <Reason|{symptom}>.": 1.2,
        "<Drug|{^drug}> <Dosage|{amount}> <Route|{route}> <Frequency|{frequency}>.": 1,
        "<Drug|{^drug}> <Strength|{strength}> <Form|{loose_form}> <Frequency|{frequency}>.": 1,
    },
    "b": {
        "<Drug|{drug}> <Dosage|{amount}> <Route|{route}> <Frequency|{frequency}>": 4,
        "<Drug|{drug}> <Dosage|{amount}> <Frequency|{frequency}> x <Duration|{duration}>": 2,
        "<Drug|{drug}> <Frequency|{frequency}> for <Reason|{symptom}>": 2,
        "<Drug|{drug}> <Strength|{strength}> <Form|{loose_form}> <Frequency|{frequency}>": 2,
        "<Drug|{drug}> - hold, gave <ADE|{symptom}>": 1,
        "<Drug|{drug}> (home dose), until seen by dr {name}": 1,
    },
}

SOCIAL_WORDS: Mapping[str, tuple[str, ...]] = {
    "packs": ("1 pack", "half a pack", "2 packs", "{few} cigarettes", "1-2 packs", "one ppd", "a pack and a half"),
    "drinks": ("{few} drinks", "a glass", "one or two", "a six-pack", "{n} beers", "a pint", "a bottle"),
    "beverage": ("beer", "wine", "vodka", "whiskey", "red wine", "liquor"),
    "smoke": ("cigarettes", "cigars", "a pipe", "chewing tobacco", "menthols"),
    "per": ("per day", "daily", "a day", "per week", "every weekend", "on holidays", "a few times a month", "nightly"),
    "years": ("{teens} years", "{few} years", "most of {her} life", "over a decade", "{n} months"),
    "ago": ("{few} years ago", "in {year}", "{n} months ago", "at age {teens}", "last spring", "in {her} twenties"),
    "substance": ("marijuana", "cocaine", "heroin", "crystal meth", "pain pills", "cannabis", "LSD"),
    "way": ("smokes", "snorts", "injects", "uses"),
    "job": (
        "teacher", "nurse", "truck driver", "carpenter", "lawyer", "cook", "farmer", "bus driver",
        "software engineer", "hairdresser", "welder", "postal worker", "bartender", "accountant",
    ),
    "family": ("{her} wife", "{her} husband", "{her} two children", "{her} parents", "{her} daughter", "family"),
    "others": ("a roommate", "two friends", "other veterans", "a caretaker"),
    "place": ("a shelter", "the street", "{her} car", "shelters"),
    "symptom": WORDS["symptom"],
    "problem": WORDS["problem"],
    "kin": WORDS["kin"],
    "duration": WORDS["duration"],
    "known_drug": WORDS["known_drug"],
}

SOCIAL: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "a": {
        "Tobacco": (
            "{^she} <StatusTime=current|<Tobacco|smokes>> <Amount|{packs}> <Frequency|{per}>.",
            "{^she} <StatusTime=current|<Tobacco|smokes>> <Type|{smoke}>, <Amount|{packs}> <Frequency|{per}> for <Duration|{years}>.",
            "{^she} <StatusTime=past|quit> <Tobacco|smoking> <History|{ago}> after <Amount|{packs}> <Frequency|{per}> for <Duration|{years}>.",
            "<StatusTime=past|Former> <Tobacco|smoker> of <Type|{smoke}>, stopped <History|{ago}>.",
            "{^she} has <StatusTime=none|never> <Tobacco|smoked>.",
            "{^she} <StatusTime=current|has not been able to quit> <Tobacco|smoking>, though down to <Amount|{packs}>.",
            "{^she} <Method|<StatusTime=current|vapes>> <Tobacco|nicotine> <Frequency|{per}>.",
            "<Tobacco|Tobacco>: <StatusTime=past|none since> <History|{year}>; before that <Amount|{packs}> <Frequency|{per}>.",
        ),
        "Alcohol": (
            "{^she} <StatusTime=current|<Alcohol|drinks>> <Amount|{drinks}> of <Type|{beverage}> <Frequency|{per}>.",
            "{^she} <StatusTime=none|does not> <Alcohol|drink>.",
            "{^she} <StatusTime=past|used to> <Alcohol|drink> <Amount|{drinks}> <Frequency|{per}>, sober since <History|{year}>.",
            "<Alcohol|Alcohol> use is <StatusTime=current|social>, <Amount|{drinks}> <Frequency|{per}>.",
            "{^she} <StatusTime=current|<Method|binges>> on <Alcohol|<Type|{beverage}>> <Frequency|{per}> and has for <Duration|{years}>.",
            "{^her} <Alcohol|drinking> <StatusTime=past|stopped> <History|{ago}> after <Duration|{years}>.",
        ),
        "Drug": (
            "{^she} <StatusTime=none|denies> <Drug|illicit drugs>.",
            "{^she} <Method|{way}> <StatusTime=current|<Drug|<Type|{substance}>>> <Frequency|{per}>.",
            "There is a <StatusTime=past|history> of <Method|intravenous> <Drug|<Type|{substance}> use>, last <History|{ago}>.",
            "{^she} <StatusTime=past|tried> <Drug|<Type|{substance}>> <History|{ago}>, <Amount|once>.",
            "{^she} <StatusTime=current|still> <Method|smokes> <Drug|<Type|marijuana>>, <Amount|two joints> <Frequency|{per}>, for <Duration|{years}>.",
            "<StatusTime=none|No> <Drug|recreational drug> use.",
        ),
        "Employment": (
            "{^she} <StatusEmploy=employed|<Employment|works>> as a <Type|{job}>.",
            "{^she} <StatusEmploy=employed|has <Employment|worked>> as a <Type|{job}> for <Duration|{years}>.",
            "{^she} is a <StatusEmploy=retired|<Employment|retired>> <Type|{job}>, out since <History|{year}>.",
            "{^she} has been <StatusEmploy=unemployed|out of <Employment|work>> for <Duration|{years}>; formerly a <Type|{job}>.",
            "{^she} has been <StatusEmploy=on_disability|on <Employment|disability>> since <History|{year}>.",
            "{^she} is a full-time <StatusEmploy=student|<Employment|student>>.",
            "{^she} is a <StatusEmploy=homemaker|<Employment|homemaker>>.",
        ),
        "LivingStatus": (
            "{^she} <StatusTime=current|<LivingStatus|lives>> <TypeLiving=alone|alone>.",
            "{^she} <StatusTime=current|<LivingStatus|lives>> <TypeLiving=with_family|with {family}>.",
            "{^she} has <StatusTime=current|<LivingStatus|lived>> <TypeLiving=with_others|with {others}> for <Duration|{years}>.",
            "{^she} <StatusTime=current|<LivingStatus|stays>> in <TypeLiving=homeless|{place}>.",
            "{^she} <StatusTime=past|<LivingStatus|lived>> <TypeLiving=with_family|with {family}> until <History|{ago}>.",
        ),
        "all": (
            "{^she} <StatusTime=none|denies> <Tobacco|tobacco>, <Alcohol|alcohol> and <Drug|drug use>.",
            "<StatusTime=none|No> <Tobacco|smoking> or <Alcohol|alcohol>; <StatusTime=past@2|remote> <Drug@2|<Type@2|{substance}>> <History@2|{ago}>.",
        ),
    },
    "b": {
        "Tobacco": (
            "<Tobacco|tob>: <StatusTime=current|<Amount|{packs}>> <Frequency|{per}> x <Duration|{years}>",
            "<Tobacco|tob>: <StatusTime=none|neg>",
            "<Tobacco|tob>: <StatusTime=past|quit> <History|{ago}>, was <Amount|{packs}> <Frequency|{per}>",
            "<StatusTime=current|+><Tobacco|tob> (<Type|{smoke}>)",
            "<StatusTime=past|ex>-<Tobacco|smoker>, <Duration|{years}>",
            "<StatusTime=none|non>-<Tobacco|smoker>",
            "<Tobacco|tob> - <Method|<StatusTime=current|vapes>> <Frequency|{per}>",
        ),
        "Alcohol": (
            "<Alcohol|etoh>: <StatusTime=current|<Amount|{drinks}>> <Frequency|{per}>",
            "<Alcohol|etoh>: <StatusTime=none|->",
            "<StatusTime=current|heavy> <Alcohol|etoh>, <Type|{beverage}> <Amount|{drinks}> <Frequency|{per}> x <Duration|{years}>",
            "<Alcohol|etoh>: <StatusTime=past|sober> since <History|{year}>",
            "<StatusTime=current|<Method|binge> <Alcohol|drinker>> <Frequency|{per}>",
        ),
        "Drug": (
            "<Drug|illicits>: <StatusTime=none|neg>",
            "<Method|iv> <Drug|<Type|{substance}>> <StatusTime=current|active>, last <History|{ago}>",
            "<StatusTime=past|h/o> <Drug|<Type|{substance}> abuse> x <Duration|{years}>",
            "<Drug|drugs>: <StatusTime=current|+> <Type|{substance}> <Amount|a gram> <Frequency|{per}>",
            "<Drug|drugs>: <Method|smokes> <StatusTime=current|<Type|marijuana>> <Frequency|{per}>",
        ),
        "Employment": (
            "<Employment|occ>: <StatusEmploy=employed|<Type|{job}>> x <Duration|{years}>",
            "<StatusEmploy=retired|<Employment|ret'd>> <Type|{job}> <History|{ago}>",
            "<StatusEmploy=unemployed|not <Employment|working>> since <History|{year}>",
            "<StatusEmploy=on_disability|<Employment|ssdi>> x <Duration|{years}>",
            "<Employment|work>: <StatusEmploy=student|in school>",
            "<StatusEmploy=homemaker|stay at home> mom/dad, no outside <Employment|job>",
        ),
        "LivingStatus": (
            "<StatusTime=current|<LivingStatus|lives>> <TypeLiving=alone|alone>",
            "<LivingStatus|home>: <StatusTime=current|<TypeLiving=with_family|w/ {family}>>",
            "<StatusTime=current|<LivingStatus|undomiciled>>, <TypeLiving=homeless|{place}> x <Duration|{years}>",
            "<StatusTime=past|was <LivingStatus|staying>> <TypeLiving=with_others|w/ {others}> until <History|{ago}>",
            "<StatusTime=current|<LivingStatus|lives>> <TypeLiving=with_others|w/ {others}>",
        ),
        "all": (
            "<StatusTime=none|no> <Tobacco|t>/<Alcohol|e>/<Drug|d>",
            "<StatusTime=none|neg> <Tobacco|tob>, <Drug|illicits>; <StatusTime=current@2|rare> <Alcohol@2|etoh>",
        ),
    },
}

SOCIAL_DECOYS = (
    "{^her} {kin} smoked {packs} {per} and died of lung cancer.",
    "{^her} {kin} drinks {drinks} {per}.",
    "{^her} {kin} works as a {job}.",
    "{^her} {kin} lives alone in another state.",
    "{^she} drinks plenty of water and one coffee {per}.",
    "{^she} works out {few} times a week.",
    "{^she} quit {known_drug} {ago} because of {symptom}.",
    "A drug-eluting stent was placed {ago}.",
    "{^she} takes {known_drug} for {problem}, no drug allergies.",
    "Retired from sports {ago} after a knee injury.",
    "{^she} stopped eating smoked meat {ago}.",
    "Hands were cleaned with alcohol; a smoke alarm was advised.",
    "{^symptom} has been there for {duration}, worse at work.",
    "{^she} was exposed to asbestos for {years}.",
    "{^she} lives for {her} garden, the {kin} says.",
    "Admitted for {symptom} and {problem}, seen by Dr. {^name}.",
    "{^she} was given {known_drug} and felt better within {duration}.",
    "Urine drug screen was sent {ago} and came back negative.",
    "Blood pressure {hundred}/{teens}, pulse {hundred}.",
    "{^she} walks {few} blocks {per} and sleeps {n} hours.",
)
