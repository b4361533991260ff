"""``onecopy doctor``: what of that which onecopy uses is here, and what is done without the rest.

An ability without which nothing works is required. Every other one has its fallback here, in words: these are all
that there are. Torch has none: what is used of it, every version of the supported range has, and is tried here to
find a torch that is not what its version says.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from . import abilities, gpu_abilities
from .command import print_line


@dataclass(frozen=True)
class Ability:
    """Something that onecopy uses.

    Attributes:
        name: what it is.
        use: what it is for.
        check: returns what it found; raises `Missing` or `OSError` if it is not there.
        without: what is done without it; empty if nothing works then.
    """

    name: str
    use: str
    check: Callable[[], str]
    without: str = ""

    @property
    def is_required(self) -> bool:
        """Whether nothing works without it."""
        return not self.without


@dataclass(frozen=True)
class Finding:
    """What a check of one ability found.

    Attributes:
        name, use, without: as in `Ability`.
        is_required: whether nothing works without it.
        is_there: whether it was found.
        found: what was found, or what was not.
    """

    name: str
    use: str
    is_required: bool
    is_there: bool
    found: str
    without: str


_NOT_LOADED: Final = "such models are refused when they are loaded"
_NO_GPU: Final = "pools run on the processor alone"

ABILITIES: Final[tuple[Ability, ...]] = (
    Ability("sealed memfd", "the one copy, which nobody can change", abilities.sealed_memory),
    Ability("sendfile into a memfd", "filling the one copy from files", abilities.sent_file),
    Ability("pidfd", "noticing at once that a process has ended", abilities.process_descriptor),
    Ability("signal of a pipe", "ending workers with their supervisor", abilities.signal_of_a_pipe),
    Ability(
        "smaps", "telling which pages of a mapped weights file were written",
        partial(abilities.line_of, "/proc/self/smaps", "Anonymous:"),
    ),
    Ability(
        "smaps_rollup", "accounting the memory of each process",
        partial(abilities.line_of, "/proc/self/smaps_rollup", "Pss_Anon:"),
    ),
    Ability("statm", "what a model takes besides its weights", partial(abilities.line_of, "/proc/self/statm", "")),
    Ability(
        "SO_PEERPIDFD", "knowing for certain which process is at a socket's other end", abilities.peer_descriptor,
        "the process of the number that SO_PEERCRED tells is opened",
    ),
    Ability("folder for sockets", "where clients on this machine come in", abilities.socket_folder),
    Ability(
        "CURVE", "keys for clients over tcp", abilities.encryption, "no pool listens beyond loopback",
    ),
    Ability(
        "executable memfd", "packages of torch's ahead-of-time compiler", abilities.executable_memory, _NOT_LOADED,
    ),
    Ability(
        "file descriptors", "a region for each weight of a megabyte or more", partial(abilities.descriptors, 4096),
        "a load that needs more fails, and says so",
    ),
    Ability(
        "memory mappings", "a mapping of each region in each worker", partial(abilities.mappings, 65530),
        "a worker that needs more cannot make the model ready, and says so",
    ),
    Ability("memory and cores", "what a pool may take, unless it is given less", abilities.limits),
    Ability(
        "spill folder", "weights that are evicted while others need their memory", abilities.spill_folder,
        "they stay in memory, and what does not fit beside them is refused",
    ),
    Ability(
        "workspace slots", "activations in memory that workers use one after the other", abilities.slots,
        "runs take private memory, and slots only bound how many run at once",
    ),
    Ability(
        "malloc_trim", "giving free heap back to the system", partial(abilities.symbol, "malloc_trim"),
        "it stays with the process until it is used again",
    ),
    Ability(
        "compiled modules", "a fifth more small requests per second", abilities.compiled_modules,
        "the same modules are interpreted, with the same results",
    ),
    Ability("torch", "everything", partial(abilities.supported_version, "torch")),
    Ability(
        "load_state_dict(assign=)", "weights by reference",
        partial(abilities.parameter, "torch.nn:Module.load_state_dict", "assign"),
    ),
    Ability(
        "torch.load(mmap=)", "state dicts and saved modules", partial(abilities.parameter, "torch:load", "mmap"),
    ),
    Ability(
        "torch.export", "exported programs (.pt2)", partial(abilities.attribute, "torch.export:ExportedProgram"),
    ),
    Ability(
        "AOTInductor's runner", "compiled packages (.pt2) that compute with the one copy",
        partial(
            abilities.parameter,
            "torch._C._aoti:AOTIModelContainerRunnerCpu.update_constant_buffer", "user_managed",
        ),
    ),
    Ability(
        "transformers", "folders and pipelines of transformers", partial(abilities.package, "transformers"),
        _NOT_LOADED,
    ),
    Ability(
        "sentence-transformers", "folders of sentence-transformers",
        partial(abilities.package, "sentence-transformers"), _NOT_LOADED,
    ),
    Ability(
        "huggingface_hub", "names in the local cache of the Hugging Face hub",
        partial(abilities.package, "huggingface_hub"), _NOT_LOADED,
    ),
    Ability(
        "torchao", "models that it quantised", partial(abilities.package, "torchao"), _NOT_LOADED,
    ),
    Ability(
        "bitsandbytes", "models that it quantised", partial(abilities.package, "bitsandbytes"), _NOT_LOADED,
    ),
    Ability(
        "prometheus-client", "metrics over HTTP", partial(abilities.package, "prometheus-client"),
        "a pool that is to serve them does not start",
    ),
    Ability("CUDA driver", "devices cuda:0 and so on", gpu_abilities.driver, _NO_GPU),
    Ability("GPUs", "weights and activations there", gpu_abilities.gpus, _NO_GPU),
    Ability(
        "virtual memory management", "the one copy on a GPU",
        partial(gpu_abilities.attribute, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"), _NO_GPU,
    ),
    Ability(
        "GPU memory as descriptors", "handing the one copy on a GPU to workers",
        partial(gpu_abilities.attribute, "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"), _NO_GPU,
    ),
    Ability("exported GPU memory", "the same, tried", gpu_abilities.exported_memory, _NO_GPU),
    Ability(
        "GPUs that use each other's memory", "dividing a model among GPUs", gpu_abilities.peers,
        "a model that fits on no GPU is refused",
    ),
    Ability(
        "interprocess events", "handing on a slot before a GPU is done with it, which no pool does yet",
        partial(gpu_abilities.attribute, "IPC_EVENT_SUPPORTED"), "workers wait for the GPU, as they do with it",
    ),
    Ability(
        "NVML", "seeing what of a GPU's memory is free, whoever takes it", gpu_abilities.management_library,
        "what CUDA contexts and other programs take counts as free",
    ),
    Ability("torch's CUDA", "running models on a GPU", gpu_abilities.torch_on_gpus, _NO_GPU),
    Ability(
        "torch's memory pools", "activations on a GPU in memory that workers use one after the other",
        gpu_abilities.memory_pool, "runs on a GPU take private memory, and slots only bound how many run at once",
    ),
    Ability(
        "Multi-Process Service", "computing on a GPU at the same time (mps)", gpu_abilities.multi_process_service,
        "processes of a GPU compute in turns",
    ),
)  # fmt: skip


def examine(what: Sequence[Ability] = ABILITIES) -> list[Finding]:
    """Check abilities, in their order."""
    return [_finding(ability) for ability in what]


def report(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found.

    Raises:
        SystemExit: something required is missing.
    """
    missing = [one.name for one in findings if one.is_required and not one.is_there]
    if as_json:
        print_line(json.dumps([dataclasses.asdict(one) for one in findings]))
    else:
        from . import tables

        rows = [(one.name, _state(one), one.use, _remark(one)) for one in findings]
        tables.table(["ability", "here", "for", "found"], rows)
        tables.say(f"missing: {', '.join(missing)}" if missing else "everything that is needed is here")
    if missing:
        raise SystemExit(1)


def _finding(ability: Ability) -> Finding:
    try:
        is_there, found = True, ability.check()
    except (abilities.Missing, OSError) as error:
        is_there, found = False, _reason(error)
    return Finding(ability.name, ability.use, ability.is_required, is_there, found, ability.without)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return where + os.strerror(error.errno)
    return str(error)


def _state(finding: Finding) -> str:
    if finding.is_there:
        return "yes"
    return "MISSING" if finding.is_required else "no"


def _remark(finding: Finding) -> str:
    if finding.is_there or finding.is_required:
        return finding.found
    return f"{finding.found}; without it {finding.without}"
