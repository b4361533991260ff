"""What is said of the facts themselves: each is there, once, and all of them fit into one command."""

import importlib
import inspect
from pathlib import Path

from gpu_checking import conditions
from gpu_checking.__main__ import TOTAL_S
from gpu_checking.catalogue import FACTS
from gpu_checking.results import Result

FOLDER = Path(importlib.import_module("gpu_checking").__file__).parent / "facts"


def test_every_fact_is_there_once():
    names = [fact.name for fact in FACTS]
    assert sorted(names) == sorted([f"T{number}" for number in range(1, 18)] + ["F1", "F2", "F3", "F4", "F5"])


def test_every_module_of_facts_is_one_of_them_and_imports_no_torch_at_its_top():
    modules = {path.stem for path in FOLDER.glob("[tf]*.py")}
    assert {fact.experiment.__module__.rpartition(".")[2] for fact in FACTS} == modules
    for fact in FACTS:
        number = fact.experiment.__module__.rpartition(".")[2].partition("_")[0]
        assert number in (fact.name.lower(), f"t{fact.name[1:]:0>2}")
        top = [
            line for line in inspect.getsource(inspect.getmodule(fact.experiment)).splitlines() if line[:1] != " "
        ]
        assert not {"import torch", "from ..models import encoder"} & set(top)


def test_every_fact_is_one_sentence_with_a_limit():
    for fact in FACTS:
        assert 20 < len(fact.statement) < 150
        assert fact.statement.endswith(".")
        assert fact.statement.count(". ") == 0
        assert 5 <= fact.limit_s <= 60
    assert conditions.LIMIT_S + sum(fact.limit_s for fact in FACTS) <= TOTAL_S == 9 * 60


def test_what_can_harm_others_comes_last():
    assert [fact.name for fact in FACTS][-3:] == ["T3", "T6", "T15"]


def test_a_result_without_anything_said_was_not_tried():
    assert Result("T1", "").verdict == "could not be tried"
