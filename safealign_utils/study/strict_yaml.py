"""The one reader of YAML: refuses, with line and fix, what a person and YAML 1.1 read differently.

Refused are a name given twice, 010, 1:30, 0x10, 1_000, yes, 2024-01-01, None, anchors, tags and a
second document; 1e-3 and -.5 are numbers. All else is plain YAML: text, numbers, true and false,
lists and `name: value`.
"""

import re

import yaml

from ..engine import boundary
from ..engine.boundary import Refusal, shown

QUOTES = "or text in quotes"
DIGITS = r"[-+]?[0-9][0-9_]*"
NUMBER = r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"
LARGEST = 300_000  # bytes, of which the loader reads some 50,000 a second
DEEPEST = 20  # lists and mappings in one another
LONGEST_NUMBER = 400  # digits
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
    """What a YAML file holds. Raises Refusal with file, line, what stands there and the fix."""
    return parse(boundary.read_text(file, str(file), LARGEST), file)


def parse(text, where):
    """What a YAML text holds; `where` names it in the Refusal that is raised."""
    with boundary.reading(where, "write plain `name: value` lines"):
        try:
            return yaml.load(text, _Strict)
        except _Misread as error:
            line = error.problem_mark.line + 1
            raise Refusal(f"{where}, line {line}: {error.problem}") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise Refusal(f"{where}: cannot be read ({place}{_words(error)})") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            sign = ascii(text[error.position])
            why = f"{sign} is no character of a text; take it out"
            raise Refusal(f"{where}, line {line}: {why}") from None


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
        name = f"{shown(index.value)[1:-1]}: " if isinstance(index, yaml.ScalarNode) else ""
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            words = "anchors (&) and aliases (*) are not used here; write the value out"
            _refuse(name + words, event)
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            tag = shown(tag)[1:-1]
            _refuse(f"{name}{tag} is a tag, which is not used here; write the value alone", event)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            self._check_plain(name, event)
        return super().compose_node(parent, index)

    def _check_plain(self, name, event):
        """Refuse a value without quotes that is misread, or is a number too long to be one."""
        said = f"{name}{shown(event.value)[1:-1]}"
        if len(event.value) > LONGEST_NUMBER:
            if re.match(NUMBER, event.value):
                digits = f"a number of {len(event.value):,} digits is too large"
                _refuse(f"{said}: {digits}; write a smaller one, {QUOTES}", event)
            return
        for form, why in MISREAD.items():
            if re.fullmatch(form, event.value):
                _refuse(f"{said}: {why}", event)

    def construct_yaml_float(self, node):
        try:
            boundary.number(node.value) if re.match(NUMBER, node.value) else None
        except boundary.Lost as error:
            _refuse(str(error), node)
        return super().construct_yaml_float(node)

    def fetch_flow_collection_start(self, token):
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column):
        self._check_depth(len(self.indents))
        return super().add_indent(column)

    def _check_depth(self, depth):
        if depth >= DEEPEST:
            words = f"is nested more than {DEEPEST} times; write it flat"
            raise _Misread(problem=words, problem_mark=self.get_mark())

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                _refuse("<< is not used here; write the names out", key)
            if key.tag != "tag:yaml.org,2002:str":
                what = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                _refuse(f"{what} is no name; write `name: value`, such a name in quotes", key)
            if key.value in lines:
                first = f"first in line {lines[key.value]}; keep one"
                _refuse(f"{shown(key.value)} is given twice, {first}", key)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _refuse(words, place):
    raise _Misread(problem=words, problem_mark=place.start_mark)


# YAML 1.1 takes 1e-3, 1.0e3 and -.5 for text.
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_yaml_float)
_Strict.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(NUMBER), list("-+.0123456789"))
