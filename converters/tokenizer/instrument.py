"""Rewrites the syntax tree of a Jinja template so that it counts what it does. Knows Jinja's nodes, not the limits."""

from typing import Any, cast

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer


class Generation(Extension):
    """{% generation %} marks the assistant's words for training; here it only writes them."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Instrument(NodeTransformer):
    """Puts a counter before every statement and a size check around everything that builds a container or a text.

    They are filters of the sandbox, with names that no template can write.
    """

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        for name in ("body", "else_"):
            if name in node.fields:
                setattr(node, name, [part for statement in getattr(node, name) for part in _counted(statement)])
        return node

    def _checked(self, node: nodes.Literal) -> nodes.Node:
        self.generic_visit(node)
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if stored else _filtered(node, " grown")

    visit_List = visit_Dict = visit_Tuple = _checked

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(
            cast(nodes.Expr, node.iter), " each"
        )  # counts items that a condition leaves out, and empty bodies
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), " tilde")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(statement: nodes.Node) -> tuple[nodes.Node, nodes.Node]:
    """A statement behind the counter, which is told how much constant text it writes."""
    texts = statement.find_all(nodes.TemplateData) if isinstance(statement, nodes.Output) else ()
    chars = nodes.Const(sum(len(text.data) for text in texts), lineno=statement.lineno)
    return nodes.ExprStmt(_filtered(chars, " step"), lineno=statement.lineno), statement
