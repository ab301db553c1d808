"""What a value is made of, for cache keys: its content, never its address and never how it prints.

Numbers, texts, arrays, tensors and tables count by their bytes, containers by what they hold,
objects by their class and fields, functions by their compiled body with defaults, closure and the
globals that they read. What libraries and this package define counts by name: their versions and
the package's source are part of every key (`cache.key`). What cannot be known this way is refused:
an entry of the cache under a guessed name would answer another question.

A class that knows itself best has a method `cache_content()` that returns plain values.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from pathlib import Path

import numpy as np

PLAIN = (type(None), bool, int, float, complex, str, bytes)
NOT_MEMBERS = {
    "__module__",
    "__dict__",
    "__weakref__",
    "__doc__",
    "__annotations__",
    "__annotate_func__",
    "__annotations_cache__",
    "__firstlineno__",
    "__static_attributes__",
    "__abstractmethods__",
    "_abc_impl",
    "__parameters__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__match_args__",
}
DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
PACKAGE = __name__.partition(".")[0]
NOT_SETTINGS = ("training", "gradient_checkpointing")


class Unknown(ValueError):
    """A value that no content can be given of; the message names it and the fix."""


def content(value, name="value"):
    """The hash (bytes) of what a value is made of. Raises Unknown, which calls it `name`, where
    nobody can know."""
    return _Reader().read(value, name)


def source_is_in_key(module):
    """Whether a module's source is part of every key: the package's own, but what runs notebooks
    and draws."""
    return module.partition(".")[0] == PACKAGE and not is_not_science(module.split(".")[1:])


def is_not_science(parts):
    """Whether a module of the package (its path below it, in parts) decides no number that is
    cached."""
    return bool(parts) and parts[0] in ("figures", "study", "runs")


class _Reader:
    """Reads one value. `open` holds what is being read, so that a cycle ends; `done` what has
    been."""

    def __init__(self):
        self.open = {}
        self.done = {}
        self.alive = []  # ids stay theirs while the reader works

    def read(self, value, name):
        if type(value) in PLAIN:
            return _hash(type(value).__name__, repr(value))
        if id(value) in self.done:
            return self.done[id(value)]
        if id(value) in self.open:
            return _hash("the one around it", str(len(self.open) - self.open[id(value)]))
        self.open[id(value)] = len(self.open)
        self.alive.append(value)
        found = self.parts(value, name)
        del self.open[id(value)]
        self.done[id(value)] = found
        return found

    def parts(self, value, name):
        for kinds, reader in self.readers():
            if isinstance(value, kinds):
                return reader(value, name)
        return self.an_object(value, name)

    def readers(self):
        """(classes, reader) in the order in which they are tried. What is not imported has no
        instances."""
        torch = sys.modules.get("torch")
        pandas = sys.modules.get("pandas")
        tokenizers = sys.modules.get("tokenizers")
        if torch is not None:
            yield torch.Tensor, self.a_tensor
            yield torch.nn.Module, self.a_network
            yield (torch.dtype, torch.device), self.by_repr
            yield torch.Generator, lambda g, name: self.read(g.get_state(), name)
        if pandas is not None:
            yield pandas.DataFrame, self.a_frame
            yield (pandas.Series, pandas.Index), self.a_series
        if tokenizers is not None:
            yield tokenizers.Tokenizer, lambda t, name: self.read(t.to_str(), name)
        yield np.generic, lambda x, name: _hash("number", str(x.dtype), x.tobytes())
        yield np.dtype, self.by_repr
        yield np.ndarray, self.an_array
        yield np.random.Generator, lambda g, name: self.read(g.bit_generator.state, name)
        yield types.ModuleType, self.a_module
        yield type, self.a_class
        yield types.MethodType, self.a_method
        yield types.FunctionType, self.a_function
        yield types.BuiltinFunctionType, self.a_built_in
        yield DESCRIPTORS, lambda d, name: _hash("built in", _full_name(d.__objclass__), d.__name__)
        yield (functools.partial, property, staticmethod, classmethod), self.a_wrapper
        yield functools.cached_property, lambda p, name: self.read(p.func, name)
        yield re.Pattern, lambda p, name: self.read((p.pattern, p.flags), name)
        yield Path, self.a_path
        yield (set, frozenset), self.a_set
        yield dict, self.a_dict
        yield (list, tuple, range, slice), self.a_list

    # ------------------------------------------------------------ data

    def an_array(self, value, name):
        if isinstance(value, np.ma.MaskedArray):
            return _hash(
                "masked", self.read(value.data, name), self.read(np.ma.getmaskarray(value), name)
            )
        if value.dtype.hasobject:
            return _hash("objects", repr(value.shape), self.a_list(value.ravel().tolist(), name))
        return _hash(
            "array", str(value.dtype), repr(value.shape), np.ascontiguousarray(value).tobytes()
        )

    def a_tensor(self, value, name):
        if value.is_quantized or value.is_sparse:
            raise Unknown(f"{name}: a {value.layout} tensor; give a dense one, or use_cache=False")
        torch = sys.modules["torch"]
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _hash("tensor", str(value.dtype), repr(tuple(value.shape)), data)

    def a_frame(self, table, name):
        columns = [self.read(table[c], f"{name}[{c!r}]") for c in table.columns]
        return _hash("table", self.read(list(table.columns), name), *columns)

    def a_series(self, values, name):
        index = getattr(values, "index", None)
        parts = [self.read(values.to_numpy(), name), str(values.dtype)]
        return _hash("column", *parts, b"" if index is None else self.read(index, name))

    def a_list(self, values, name):
        if isinstance(values, slice):
            values = (values.start, values.stop, values.step)
        items = [self.read(item, f"{name}[{i}]") for i, item in enumerate(values)]
        return _hash("list", *items, *self.fields_beside(values, name))

    def a_dict(self, values, name):
        items = [self.read(part, f"{name}[{k!r}]") for k, v in values.items() for part in (k, v)]
        return _hash("dict", *items, *self.fields_beside(values, name))

    def a_set(self, values, name):
        items = sorted(self.read(item, name) for item in values)
        return _hash("set", *items, *self.fields_beside(values, name))

    def fields_beside(self, values, name):
        """The class of a container, and the fields that a class of the user's own adds to it."""
        return self.read(type(values), name), self.read(getattr(values, "__dict__", None), name)

    def a_path(self, path, name):
        return _hash("path", str(path), path.read_bytes() if path.is_file() else b"")

    def by_repr(self, value, name):
        """By how it prints, where that says all: no address, nothing left out."""
        text = repr(value)
        if re.search(r"\b0x[0-9a-fA-F]{4,}|\.\.\.|<[^>]*object", text):
            raise Unknown(
                f"{name}: what {text[:60]!r} is made of cannot be known; hold plain values, "
                "arrays or tensors instead, "
                "give its class a method cache_content(), or use_cache=False"
            )
        return _hash("as printed", _full_name(type(value)), text)

    # ------------------------------------------------------------ objects and classes

    def an_object(self, value, name):
        kind = type(value)
        if hasattr(kind, "cache_content"):
            return _hash("object", self.read(kind, name), self.read(value.cache_content(), name))
        slots = [slot for base in kind.__mro__ for slot in _slots(base) if hasattr(value, slot)]
        if not hasattr(value, "__dict__") and not slots:
            return self.by_repr(value, name)
        remembered = {n for b in kind.__mro__ for n, v in vars(b).items() if _remembers(v)}
        fields = {slot: getattr(value, slot) for slot in slots} | getattr(value, "__dict__", {})
        fields = [(n, v) for n, v in fields.items() if n not in remembered]
        parts = [part for n, v in fields for part in (n.encode(), self.read(v, f"{name}.{n}"))]
        if any(_is_compiled(base) for base in kind.__mro__[:-1]):
            parts.append(self.by_repr(value, name))
        return _hash("object", self.read(kind, name), *parts)

    def a_class(self, kind, name):
        """By name where it is the package's or a library's; else its bases and all that stands in
        its body."""
        if _is_known(kind.__module__):
            return _hash("class", _full_name(kind))
        parts = [self.read(base, name) for base in kind.__bases__]
        made = dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
        for field in vars(kind).get("__dataclass_fields__", {}).values():
            rest = [field.default, field.default_factory]
            known = [
                b"" if x is dataclasses.MISSING else self.read(x, f"{name}.{field.name}")
                for x in rest
            ]
            parts += [field.name.encode(), *known]
        for member, value in vars(kind).items():
            code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
            generated = made and code is not None and code.co_filename.startswith("<string>")
            slot = inspect.isdatadescriptor(value) and not isinstance(value, property)
            if member not in NOT_MEMBERS and not generated and not slot:
                parts += [member.encode(), self.read(value, f"{name}.{member}")]
        return _hash("class", kind.__qualname__, *parts)

    # ------------------------------------------------------------ functions

    def a_method(self, method, name):
        return _hash("method", self.read(method.__func__, name), self.read(method.__self__, name))

    def a_built_in(self, function, name):
        owner = function.__self__
        mine = (
            b"" if owner is None or isinstance(owner, types.ModuleType) else self.read(owner, name)
        )
        return _hash("built in", str(function.__module__), function.__qualname__, mine)

    def a_function(self, function, name):
        """Its compiled body, defaults and closure; of a user's own also the globals that it
        reads."""
        cells = [_inside(cell) for cell in function.__closure__ or ()]
        around = [
            self.read(x, name) for x in (function.__defaults__, function.__kwdefaults__, cells)
        ]
        where = function.__globals__.get("__name__")
        if _is_known(where):
            return _hash("function", str(where), self.a_body(function.__code__), *around)
        try:
            inspect.getsource(function)
        except (OSError, TypeError):
            raise Unknown(
                f"{name}: the source of {function.__qualname__!r} is nowhere to be found, so that "
                "nobody could tell "
                "what was asked; write it with `def` in a file or in a cell of a notebook, or "
                "use_cache=False"
            ) from None
        for used in sorted(_globals_of(function.__code__)):
            if used in function.__globals__:
                around += [used.encode(), self.read(function.__globals__[used], f"{name}: {used}")]
        return _hash("function", self.a_body(function.__code__), *around)

    def a_body(self, code):
        """A compiled body: its steps, names and constants, those of inner functions included."""
        constants = [
            self.a_body(c) if isinstance(c, types.CodeType) else self.read(c, "")
            for c in code.co_consts
        ]
        names = repr(
            (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
        )
        return _hash("body", code.co_code, names, *constants)

    def a_wrapper(self, value, name):
        if isinstance(value, functools.partial):
            parts = [value.func, value.args, value.keywords]
        elif isinstance(value, property):
            parts = [value.fget, value.fset]
        else:
            parts = [value.__func__]
        return _hash(type(value).__name__, *[self.read(part, name) for part in parts])

    def a_module(self, module, name):
        """A library or a module of the package by its name, a user's own by its source and what it
        imports."""
        if _is_known(module.__name__):
            return _hash("module", module.__name__)
        file = getattr(module, "__file__", None)
        if file is None and not any(_is_from(module, value) for value in vars(module).values()):
            return _hash("module", module.__name__)  # compiled: an inner part of a library
        if file is None:
            raise Unknown(
                f"{name}: the module {module.__name__!r} has no file; import what is used, not "
                "the module"
            )
        parts = [Path(file).read_bytes()]
        for used, value in vars(module).items():
            theirs = getattr(value, "__module__", None) if callable(value) else None
            if isinstance(value, types.ModuleType) or (
                isinstance(theirs, str) and theirs != module.__name__
            ):
                parts += [used.encode(), self.read(value, f"{name}.{used}")]
        return _hash("module", module.__name__, *parts)

    # ------------------------------------------------------------ networks

    def a_network(self, net, name):
        """A network: of each part its class, fields and hooks; all weights and buffers."""
        parts = []
        for place, part in net.named_modules():
            own = {
                k: v
                for k, v in vars(part).items()
                if not k.startswith("_") and k not in NOT_SETTINGS
            }
            parts += [
                place.encode(),
                self.read(type(part), name),
                self.read(own, f"{name}.{place}"),
            ]
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                parts += [self.read(hook, f"{name}.{place}: a hook") for hook in hooks.values()]
        for place, tensor in net.state_dict().items():
            parts += [place.encode(), self.read(tensor, f"{name}.{place}")]
        return _hash("network", *parts)


def settings_of(part):
    """The plain settings of one part of a network (`scaling`, `p`): what a forward may read beside
    the weights."""
    return {
        key: value
        for key, value in sorted(vars(part).items())
        if type(value) in (int, float, bool, str)
        and key not in NOT_SETTINGS
        and not key.startswith("_")
        and "cached" not in key
    }


def _hash(kind, *parts):
    h = hashlib.sha256(kind.encode())
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        h.update(f" {len(part)} ".encode())
        h.update(part)
    return h.digest()


def _full_name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def _globals_of(code):
    """Names of the globals that a body reads, those of inner functions included."""
    out = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            out |= _globals_of(constant)
    return out


@functools.cache
def _is_known(module):
    """Whether a module's code is part of every key by itself: a library's (its version), or this
    package's science."""
    if module is None or module in ("builtins", "__builtin__"):
        return True
    if module.partition(".")[0] == PACKAGE:
        return source_is_in_key(module)
    found = sys.modules.get(module) or sys.modules.get(module.partition(".")[0])
    if module == "__main__" or found is None:
        return False
    file = getattr(found, "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or getattr(found, "__spec__", None) is not None
    return str(Path(file).resolve()).startswith(tuple(str(Path(p).resolve()) for p in LIBRARIES))


def _is_compiled(kind):
    """Whether a class is written in C, so that it can hold what no field shows."""
    heap_type = 1 << 9
    return not kind.__flags__ & heap_type


def _is_from(module, value):
    """Whether a value is a function, or a class with methods, that a module's own Python code
    made."""
    if isinstance(value, type) and value.__module__ == module.__name__:
        return any(hasattr(member, "__globals__") for member in vars(value).values())
    return getattr(value, "__globals__", {}).get("__name__") == module.__name__


def _slots(kind):
    slots = vars(kind).get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else slots
    return [slot for slot in slots if slot not in ("__dict__", "__weakref__")]


def _remembers(member):
    return isinstance(member, functools.cached_property)


def _inside(cell):
    """What a closure's cell holds; None where it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
