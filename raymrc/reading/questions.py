"""Label sets and their questions, written from each corpus's label definitions.

A table is a label set. Names repeat between sets with other meanings ("Drug" is a
medication in 2018 and substance use in SHAC), so questions are taken from the table that
knows most of the labels asked for, and of several such from the smallest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from raymrc.errors import SpecError, suggest
from raymrc.reading.relations import RelationQuestion

N2C2_2018_QUESTIONS = {
    "Drug": "Which medications, by generic, brand or class name, are mentioned?",
    "Strength": "What is the strength of a medication, the amount of drug in one unit of it?",
    "Form": "In which form, such as tablet, capsule or solution, is a medication given?",
    "Dosage": "How many units of a medication, such as tablets or puffs, are taken each time?",
    "Frequency": "How often is a medication taken, or when, including as needed?",
    "Route": "By which route, such as by mouth or intravenously, is a medication given?",
    "Duration": "For how long is a medication taken or to be taken?",
    "Reason": "For which symptom, disease or other reason is a medication given?",
    "ADE": "Which adverse drug events, harm done to the patient by a medication, are mentioned?",
}

SHAC = {
    "Employment": "Which words mention the patient's employment or occupation?",
    "LivingStatus": "Which words mention where or with whom the patient lives?",
    "Alcohol": "Which words mention the patient's use of alcohol?",
    "Drug": "Which words mention the patient's use of illicit or recreational drugs?",
    "Tobacco": "Which words mention the patient's use of tobacco or smoking?",
    "StatusTime": "Which words say whether a social factor is current, past, future or absent?",
    "StatusEmploy": "Which words say whether the patient is employed, unemployed, retired, "
    "a student, a homemaker or on disability?",
    "TypeLiving": "Which words say whether the patient lives alone, with family, with others "
    "or is homeless?",
    "Type": "Which kind of substance, work or home is it?",
    "Method": "In which way, such as smoked, chewed or injected, is a substance used?",
    "Amount": "How much of a substance does the patient use?",
    "Frequency": "How often does the patient use a substance?",
    "Duration": "For how long has the patient used a substance, done a job or lived somewhere?",
    "History": "How long ago, or when, did a past use, job or home begin or end?",
}

PHEE = {
    "Adverse_event": "Which words say that a treatment led to something harmful?",
    "Potential_therapeutic_event": "Which words say that a treatment may have helped?",
    "Subject": "Who received the treatment: which patient, group or population?",
    "Age": "How old is the treated patient or group?",
    "Gender": "What is the sex or gender of the treated patient or group?",
    "Race": "What is the race, ethnicity or nationality of the treated patient or group?",
    "Population": "How many patients were there?",
    "Sub-Disorder": "Which other disorder does the treated patient or group have?",
    "Treatment": "Which whole phrase describes the treatment that was given?",
    "Drug": "Which drugs were given as treatment?",
    "Dosage": "In what amount was the drug given?",
    "Freq": "How often was the drug given?",
    "Route": "By which route, such as oral or intravenous, was the drug given?",
    "Duration": "For how long was the treatment given?",
    "Time_elapsed": "How much time passed between the treatment and its effect?",
    "Treat-Disorder": "Which disorder was the treatment meant for?",
    "Combination": "Which words say that drugs were given together or interacted?",
    "Effect": "Which outcome or side effect did the treatment have?",
    "Severity_cue": "Which words say how severe the effect was?",
    "Speculation_cue": "Which words say that the event is uncertain or only suspected?",
    "Negation_cue": "Which words say that the event did not happen?",
}

MACCROBAT = {
    "Activity": "Which activities of the patient, such as smoking, walking or breathing in, "
    "are mentioned?",
    "Administration": "By which route or in which way is a medication or treatment given?",
    "Age": "How old is the patient?",
    "Area": "Which sizes in two dimensions are given?",
    "Biological_attribute": "Which biological attributes, such as features of cells or organs, "
    "are mentioned?",
    "Biological_structure": "Which organs, body parts, tissues or cells are mentioned?",
    "Clinical_event": "Which clinical events, such as admission, discharge, referral or "
    "follow-up, are mentioned?",
    "Color": "Which colours are described?",
    "Coreference": "Which words refer back to something named before?",
    "Date": "On which date, at which age or how long after another event did something happen?",
    "Detailed_description": "Which words describe a finding, disease or procedure in more detail?",
    "Diagnostic_procedure": "Which examinations, tests, scans or measurements are mentioned?",
    "Disease_disorder": "Which diseases or disorders are diagnosed or mentioned?",
    "Distance": "Which lengths or sizes in one dimension are given?",
    "Dosage": "In what amount or dose is a medication or treatment given?",
    "Duration": "For how long did something last?",
    "Family_history": "What is said about the health of the patient's family?",
    "Frequency": "How often did something happen or was something given?",
    "Height": "How tall is the patient?",
    "History": "Which earlier diseases, treatments or habits of the patient are mentioned?",
    "Lab_value": "Which results or values of tests and measurements are given?",
    "Mass": "Which masses of things other than a patient are given?",
    "Medication": "Which medications or groups of medications are mentioned?",
    "Nonbiological_location": "Which places, such as a hospital, ward or home, are mentioned?",
    "Occupation": "What is the patient's occupation?",
    "Other_entity": "Which other medically relevant things or statements are mentioned?",
    "Other_event": "Which other events that matter to the case are mentioned?",
    "Outcome": "What was the patient's outcome, such as recovery or death?",
    "Personal_background": "What is the patient's ethnicity, nationality or other background?",
    "Qualitative_concept": "Which qualities, other than test results, are described in words?",
    "Quantitative_concept": "Which quantities, other than test results and sizes, are given?",
    "Severity": "How severe is a symptom or disease?",
    "Sex": "What is the patient's sex?",
    "Shape": "Which shapes are described?",
    "Sign_symptom": "Which signs, symptoms or findings does the patient have?",
    "Subject": "Which persons other than the patient, such as a parent or newborn, are mentioned?",
    "Texture": "Which textures or consistencies are described?",
    "Therapeutic_procedure": "Which treatments and procedures, other than medications, "
    "are mentioned?",
    "Time": "At which time of day, or how many hours after another event, did something happen?",
    "Volume": "Which volumes or sizes in three dimensions are given?",
    "Weight": "How much does the patient weigh?",
}

BC5CDR = {
    "Chemical": "Which chemicals or drugs are mentioned?",
    "Disease": "Which diseases, symptoms or adverse effects are mentioned?",
}

DRUG_ADE = {
    "Drug": "Which medications, by generic, brand or class name, are mentioned?",
    "Dosage": "In what dose or strength is a medication given?",
    "Route": "By which route is a medication given?",
    "Frequency": "How often is a medication given?",
    "Duration": "For how long is a medication given?",
    "ADE": "Which harmful effects of a medication are mentioned?",
    "Reason": "Which disorder is a medication given for?",
}
"""What MACCROBAT and PHEE have in common, under the names of 2018; a dosage covers strength."""

TABLES: dict[str, dict[str, str]] = {
    "drug-ade": DRUG_ADE,
    "n2c2-2018": N2C2_2018_QUESTIONS,
    "n2c2-2022": SHAC,
    "phee": PHEE,
    "maccrobat": MACCROBAT,
    "bc5cdr": BC5CDR,
}


def _substance(name: str, ways: str, kinds: str) -> dict[str, str]:
    return {
        "StatusTime": f"Does the patient use {name} now, did they in the past, or never?",
        "Type": f"Which kind of {name}, such as {kinds}, does the patient use?",
        "Method": f"In which way, such as {ways}, does the patient use {name}?",
        "Amount": f"How much {name} does the patient use?",
        "Frequency": f"How often does the patient use {name}?",
        "Duration": f"For how long has the patient used {name}?",
        "History": f"How long ago did the patient begin or stop using {name}?",
    }


SHAC_ARGUMENT_QUESTIONS: dict[tuple[str, str], str] = {
    (trigger, argument): question
    for trigger, questions in {
        "Alcohol": _substance("alcohol", "drinking", "beer, wine or liquor"),
        "Drug": _substance("drugs", "injecting or smoking", "cannabis, cocaine or heroin"),
        "Tobacco": _substance("tobacco", "smoking or chewing", "cigarettes, cigars or snuff"),
        "Employment": {
            "StatusEmploy": "Is the patient employed, unemployed, retired, a student, "
            "a homemaker or on disability?",
            "Type": "What kind of work does or did the patient do?",
            "Duration": "For how long has or had the patient worked there?",
            "History": "How long ago did the patient begin or stop working?",
        },
        "LivingStatus": {
            "StatusTime": "Does the patient live so now, or did they in the past?",
            "TypeLiving": "Does the patient live alone, with family, with others, "
            "or are they homeless?",
            "Duration": "For how long has the patient lived so?",
            "History": "How long ago did the patient begin or stop living so?",
        },
    }.items()
    for argument, question in questions.items()
}
"""The 29 questions for an argument of a given trigger."""

_SUBSTANCES = {"Alcohol": "alcohol", "Drug": "drugs", "Tobacco": "tobacco"}

SHAC_VALUE_QUESTIONS: dict[tuple[str, str, str], str] = {
    (trigger, argument, value): f"Which words say that the patient {what}?"
    for (trigger, argument), values in {
        **{
            (trigger, "StatusTime"): {
                "current": f"uses {name} now",
                "past": f"used {name} in the past",
                "none": f"does not use {name}, or never did",
                "future": f"will use {name}",
            }
            for trigger, name in _SUBSTANCES.items()
        },
        ("LivingStatus", "StatusTime"): {
            "current": "lives so now",
            "past": "lived so in the past",
            "none": "does not live so",
            "future": "will live so",
        },
        ("Employment", "StatusEmploy"): {
            "employed": "is employed",
            "unemployed": "is unemployed",
            "retired": "is retired",
            "on_disability": "is on disability",
            "student": "is a student",
            "homemaker": "is a homemaker",
        },
        ("LivingStatus", "TypeLiving"): {
            "alone": "lives alone",
            "with_family": "lives with family",
            "with_others": "lives with others",
            "homeless": "is homeless",
        },
    }.items()
    for value, what in values.items()
}
"""The questions for a labelled argument's value; each value of a given trigger's argument has one."""


N2C2_2018_RELATIONS = {
    "Strength-Drug": "What is the strength of the marked medication?",
    "Form-Drug": "In which form is the marked medication given?",
    "Dosage-Drug": "How many units of the marked medication are taken each time?",
    "Frequency-Drug": "How often is the marked medication taken?",
    "Route-Drug": "By which route is the marked medication given?",
    "Duration-Drug": "For how long is the marked medication taken?",
    "Reason-Drug": "For which reason is the marked medication given?",
    "ADE-Drug": "Which adverse events did the marked medication cause?",
}


def default_questions(labels: Sequence[str]) -> dict[str, str]:
    """Label -> question, in the order of `labels`.

    All come from the smallest label set that knows most of `labels`; a label that it lacks
    is looked up in the others, and one that none knows is asked for by its name.
    """
    tables = sorted(
        TABLES.values(),
        key=lambda table: (-sum(label in table for label in labels), len(table)),
    )
    questions: dict[str, str] = {}
    for label in labels:
        known = (table[label] for table in tables if label in table)
        questions[label] = next(known, f"Which words mention {in_plain_words(label)}?")
    return questions


def build_questions(
    labels: Sequence[str],
    overrides: Mapping[str, str],
    relations: Sequence[RelationQuestion] = (),
) -> dict[str, str]:
    """The questions of a study, by label and by name of the relation question: its own words where it
    gives some, else ours.

    Raises:
        SpecError: a question for something that the corpus does not have, or an empty one.
    """
    ours = default_questions(labels) | {r.name: _relation_question(r) for r in relations}
    problems = []
    for name, question in overrides.items():
        if name not in ours:
            kind = "label or relation" if relations else "label"
            problems.append(f"questions: the corpus has no {kind} {name!r}{suggest(name, ours)}")
        elif not question.strip():
            problems.append(f"questions: the question for {name!r} is empty; give it some words")
    if problems:
        raise SpecError(problems)
    return ours | dict(overrides)


def _relation_question(question: RelationQuestion) -> str:
    """The given mention is marked in the text, and called so."""
    known = [SHAC_ARGUMENT_QUESTIONS.get((given, question.relation)) for given in question.given]
    if question.value:
        valued = (question.given[0], question.relation, question.value)
        if valued in SHAC_VALUE_QUESTIONS:
            return SHAC_VALUE_QUESTIONS[valued]
    elif known[0] is not None and len(known) == 1:
        return known[0]
    given = " or ".join(in_plain_words(label) for label in question.given[:3])
    answers = " or ".join(in_plain_words(label) for label in question.answers[:3])
    if question.value:
        answers += f" with the value {in_plain_words(question.value)}"
    return N2C2_2018_RELATIONS.get(question.name, f"Which {answers} belongs to the marked {given}?")


def questions_fingerprint(questions: Mapping[str, str]) -> str:
    """SHA-256 of labels and wording, whatever their order: 64 hex digits."""
    return hashlib.sha256(json.dumps(dict(questions), sort_keys=True).encode()).hexdigest()


def in_plain_words(label: str) -> str:
    """ "StatusTime", "Lab_value" -> "status time", "lab value"; an acronym stays as it is."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+|[A-Z]+", label)
    return " ".join(part if part.isupper() else part.lower() for part in parts) or label
