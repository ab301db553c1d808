"""The one reader of YAML: refuses, with line and fix, what a person and YAML 1.1 read differently.

Refused are a name given twice, 010, 1:30, 0x10, 1_000, yes, 2024-01-01, None, anchors, tags and a
second document; 1e-3 and -.5 are numbers. All else is plain YAML: text, numbers, true and false,
lists and `name: value`.
"""

import re
from pathlib import Path

import yaml

QUOTES = "or text in quotes"
DIGITS = r"[-+]?[0-9][0-9_]*"
NUMBER = r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"
MISREAD = {  # a bare value, and why it is none, with the fix
    rf"{DIGITS}(:[0-9_]+)+(\.[0-9_]*)?": "YAML counts in sixties here; write one number, " + QUOTES,
    r"[-+]?0[xXbBoO][0-9a-fA-F_]+": "no decimal number; write one, " + QUOTES,
    r"[-+]?0[0-9_]+": "YAML reads a leading zero as octal; write the number without it, " + QUOTES,
    rf"(?=.*_){DIGITS}\.?[0-9_]*([eE][-+]?[0-9_]+)?": "write its digits alone, " + QUOTES,
    r"(?i:yes|no|on|off)": "write true or false, " + QUOTES,
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?": "YAML makes a date of it; write it in quotes",
    r"None": "leave the line out, or write the text in quotes",
}


def read(file):
    """What a YAML file holds. Raises ValueError with file, line, what stands there and the fix."""
    try:
        return parse(Path(file).read_text(encoding="utf-8"), file)
    except UnicodeDecodeError as error:
        why = f"{error.reason}, byte {error.start}); save it as UTF-8"
        raise ValueError(f"{file}: cannot be read ({why}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None


def parse(text, where):
    """What a YAML text holds; `where` names it in the ValueError that is raised."""
    try:
        return yaml.load(text, _Strict)
    except _Misread as error:
        raise ValueError(f"{where}, line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}: cannot be read ({place}{_words(error)})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{where}: cannot be read ({str(error).splitlines()[0]})") from None


def _words(error):
    if "'\\t'" in str(error.problem):
        return "a tab; write blanks"
    if "single document" in str(error.context):
        return "a second document; keep one in a file"
    return " ".join(str(error.problem or error.context).split())


class _Misread(yaml.MarkedYAMLError):
    """A value that YAML and a person read differently."""


class _Strict(yaml.SafeLoader):
    def compose_node(self, parent, index):
        event = self.peek_event()
        name = f"{index.value}: " if isinstance(index, yaml.ScalarNode) else ""
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            words = "anchors (&) and aliases (*) are not used here; write the value out"
            _refuse(name + words, event)
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            _refuse(f"{name}{tag} is a tag, which is not used here; write the value alone", event)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            for form, why in MISREAD.items():
                if re.fullmatch(form, event.value):
                    _refuse(f"{name}{event.value}: {why}", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                _refuse("<< is not used here; write the names out", key)
            if key.tag != "tag:yaml.org,2002:str":
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                _refuse(f"{shown} is no name; write `name: value`, such a name in quotes", key)
            if key.value in lines:
                first = f"first in line {lines[key.value]}; keep one"
                _refuse(f"{key.value!r} is given twice, {first}", key)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _refuse(words, place):
    raise _Misread(problem=words, problem_mark=place.start_mark)


# YAML 1.1 takes 1e-3, 1.0e3 and -.5 for text.
_Strict.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(NUMBER), list("-+.0123456789"))
