"""Who may import whom: read from every file, and tried in real processes."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "pool", "workers")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: Where torch and NumPy may be imported, and only inside functions; `workers` may anywhere.
HEAVY = {"torch", "numpy"}
MAY_USE_HEAVY = {
    "protocol/arrays.py", "protocol/casting.py", "protocol/contents.py", "protocol/frozen.py", "protocol/gpu.py",
    "protocol/mapping.py", "protocol/pieces.py", "protocol/reducers.py", "protocol/regions.py",
    "protocol/skeleton.py", "protocol/uploads.py",
    "pool/lines.py",  # files of jobs and results, read by the command line
}  # fmt: skip

#: What one package or file may import at its top besides the standard library and this project.
THIRD_PARTY = {
    "protocol": {"msgpack"},
    "protocol/reducers.py": {"cloudpickle"},
    "protocol/skeleton.py": {"cloudpickle"},
    "pool": {"zmq"},
    "pool/supervisor": {"zmq"},
    "pool/core": set(),
    "pool/memory": set(),
    "pool/cli.py": {"typer"},
    "pool/cli_ask.py": {"typer"},
    "pool/cli_keys.py": {"typer"},
    "pool/cli_models.py": {"typer"},
    "pool/cli_pool.py": {"typer"},
    "pool/cli_run.py": {"typer"},
    "pool/jobfiles.py": {"xxhash"},
    "pool/command.py": {"typer", "rich", "zmq"},
    "pool/metrics.py": {"prometheus_client"},
    "pool/metrics_server.py": {"prometheus_client"},
    "pool/tables.py": {"rich"},
    "pool/top.py": {"rich"},
    "pool/top_picture.py": {"rich"},
    "workers": {"torch", "numpy"},
}
#: What may be imported inside functions only.
LAZY = {
    "protocol/cuda.py": {"cuda"},
    "protocol/filling.py": {"xxhash"},
    "pool/sources.py": {"cloudpickle"},
    "pool/handle.py": {"tqdm"},
    "pool/batch.py": {"tqdm"},
    "pool/lines.py": {"numpy", "torch"},
    "pool/memory/nvml.py": {"pynvml"},
}
#: What freezes, thaws and fills: for whoever holds a model, which the supervisor never does.
WITH_MODELS = {"contents", "culprit", "filling", "frozen", "granter", "origins", "pieces", "reducers", "skeleton"}
#: The core decides and does nothing else: no input, output or clock, not even by way of the standard library.
IMPURE = {
    "asyncio", "io", "multiprocessing", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil",
    "socket", "subprocess", "tempfile", "threading", "time", "datetime",
}  # fmt: skip


class Import(NamedTuple):
    """One import: of which module (for a relative one: its path from the root), and where."""

    path: str
    line: int
    module: str
    is_relative: bool
    is_lazy: bool

    @property
    def top(self):
        return self.module.split(".", 1)[0]

    def __str__(self):
        return f"{self.path}:{self.line} imports {self.module}"


def imports_of(path):
    name = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    found = []

    def visit(node, is_lazy):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node = ast.Module(node.orelse, [])  # for type checkers alone: it is never executed
        if isinstance(node, ast.Import):
            found.extend(Import(name, node.lineno, alias.name, False, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(Import(name, node.lineno, node.module or "", False, is_lazy))
        elif isinstance(node, ast.ImportFrom):
            folder = path.relative_to(ROOT).parts[: -node.level]
            for alias in node.names:
                module = ".".join([*folder, *filter(None, [node.module]), alias.name])
                found.append(Import(name, node.lineno, module, True, is_lazy))
        is_lazy = is_lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            visit(child, is_lazy)

    visit(tree, False)
    return found


IMPORTS = [one for path in FILES for one in imports_of(path)]
OWN = [one for one in IMPORTS if one.is_relative]
OTHERS = [one for one in IMPORTS if not one.is_relative]


def allowed_at_top(path):
    """What the most specific entry for a file allows."""
    parts = path.split("/")
    candidates = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next(THIRD_PARTY[candidate] for candidate in candidates if candidate in THIRD_PARTY)


def test_there_are_imports_to_judge():
    assert len(FILES) > 40
    assert len(OWN) > 150
    assert {one.top for one in OWN} == set(PACKAGES)


def test_pool_and_workers_never_import_each_other_and_protocol_imports_neither():
    allowed = {"protocol": {"protocol"}, "pool": {"pool", "protocol"}, "workers": {"workers", "protocol"}}
    assert [str(one) for one in OWN if one.top not in allowed[one.path.split("/")[0]]] == []


def test_inside_the_project_imports_are_relative():
    wrong = [str(one) for one in OTHERS if one.top in ("onecopy", *PACKAGES)]
    assert wrong == []


def test_torch_and_numpy_are_imported_by_few_files_and_only_when_used():
    wrong = [
        str(one)
        for one in OTHERS
        if one.top in HEAVY
        and not one.path.startswith("workers/")
        and not (one.path in MAY_USE_HEAVY and one.is_lazy)
    ]
    assert wrong == []


def test_other_libraries_are_imported_where_they_belong():
    def is_right(one):
        if one.top in sys.stdlib_module_names or one.path.startswith("workers/"):
            return True
        if one.top in allowed_at_top(one.path):
            return True
        lazily = LAZY.get(one.path, set()) | (HEAVY if one.path in MAY_USE_HEAVY else set())
        return one.is_lazy and one.top in lazily

    assert [str(one) for one in OTHERS if not is_right(one)] == []


def test_the_core_imports_nothing_that_could_act():
    core = [one for one in IMPORTS if one.path.startswith("pool/core/")]
    assert [str(one) for one in core if not one.is_relative and one.top in IMPURE] == []
    reached = {one.module for one in core if one.is_relative}
    assert [module for module in reached if not module.startswith(("pool.core", "protocol."))] == []
    used = {module.split(".")[1] for module in reached if module.startswith("protocol.")}
    assert used <= {"errors", "limits", "messages", "states", "manifest", "tensors"}


def test_the_environment_is_read_in_one_place():
    names = {"environ", "environb", "getenv"}
    readers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            is_read = isinstance(node, ast.Attribute) and node.attr in names
            if is_read or (isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & names):
                readers.add(str(path.relative_to(ROOT)))
    # ... on each side; a zygote takes out of it what it was started with.
    assert readers == {"pool/environment.py", "workers/preload.py"}


# --- in real processes ---------------------------------------------------------------------------------------


def run(program):
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_supervisor_process_imports_nothing_heavy():
    loaded = set(run("import sys, onecopy.pool.supervisor.__main__; print(*sys.modules)").split())
    heavy = {
        "torch", "numpy", "typer", "rich", "cloudpickle", "tqdm", "safetensors", "xxhash", "asyncio",
        "onecopy.workers",
    }  # fmt: skip
    assert heavy & loaded == set()
    assert {f"onecopy.protocol.{name}" for name in WITH_MODELS} & loaded == set()
    assert {"zmq", "onecopy.protocol.messages"} <= loaded


def test_the_supervisor_has_no_way_to_what_handles_models():
    """Not inside a function either: that would be imported once it serves."""
    supervisor = ("pool/supervisor/", "pool/core/", "pool/memory/", "pool/settings.py", "pool/toml.py")
    assert {path.stem for path in FILES if path.parent.name == "protocol"} >= WITH_MODELS
    ways = [one for one in OWN if one.path.startswith(supervisor) and one.top == "protocol"]
    assert len(ways) > 50
    assert [str(one) for one in ways if one.module.split(".")[1] in WITH_MODELS] == []


@pytest.mark.parametrize(
    "module",
    [
        "pool", "pool.attach", "pool.model", "pool.handover", "protocol.channel", "protocol.filling",
        "protocol.frozen", "protocol.values",
    ],
)  # fmt: skip
def test_what_an_app_imports_first_is_light(module):
    loaded = run(f"import sys, onecopy.{module}; print(*sys.modules)").split()
    assert {"torch", "numpy", "xxhash", "typer", "rich"} & set(loaded) == set()


def test_a_client_works_where_torch_cannot_be_imported():
    run(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from onecopy.pool import Pool, SupervisorLost\n"
        "try:\n"
        "    Pool.connect('ipc:///nowhere')\n"
        "except SupervisorLost as error:\n"
        "    assert 'nobody serves at ipc:///nowhere' in str(error)\n"
        "else:\n"
        "    sys.exit('connected to nobody')\n"
    )
