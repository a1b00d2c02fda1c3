"""`POST /`: the model's main route, and the form in which `huggingface_hub.InferenceClient` asks for a task.

text-embeddings-inference sends the body of the model's main route. InferenceClient sends `inputs` and, but for vectors,
`parameters`, and expects what a pipeline of transformers gives:

| inputs | parameters | what is done |
|---|---|---|
| a text, or several | candidate_labels, hypothesis_template, multi_label | zero-shot classification |
| a text, or several | top_k, function_to_apply | text classification |
| a text, or several | aggregation_strategy, ignore_labels, stride | token classification |
| a text, or several | schema, language, threshold | information extraction; ours alone |
| {question, context}, or several | top_k, doc_stride, max_answer_len, max_seq_len, handle_impossible_answer | answers |
| {source_sentence, sentences} | prompt_name, truncate | sentence similarity |
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.responses import Response

from .errors import empty, too_large
from .info import kind
from .routes import Routes, given, json_response
from .schemas import Body, EmbedRequest, Listed, PredictRequest, RerankRequest, SimilarityRequest, Texts
from .service import Service
from .settings import ServerSettings

B = TypeVar("B", bound=Body)
Count = Annotated[int, Field(ge=1)]


class ZeroShotParameters(Body):
    """Options of the task "zero_shot"."""

    candidate_labels: str | Texts
    hypothesis_template: str | None = None
    multi_label: bool | None = None


class ClassifyParameters(Body):
    """Options of the task "classify"."""

    top_k: Count | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class TagParameters(Body):
    """Options of the task "tag"."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: list[str] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None


class ExtractParameters(Body):
    """Options of the task "extract"."""

    extraction_schema: Annotated[Any, Field(alias="schema")]
    language: Literal["zh", "en"] | None = None
    threshold: float | None = None


class AnswerParameters(Body):
    """Options of the task "answer"."""

    top_k: Count | None = None
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    max_answer_len: Count | None = None
    max_seq_len: Count | None = None
    handle_impossible_answer: bool | None = None


class Question(Body):
    """A question, and the text that holds its answer."""

    question: str
    context: str


class TextsRequest(Body):
    """A text, or several."""

    inputs: str | Texts


class QuestionsRequest(Body):
    """A question, or several."""

    inputs: Question | Listed[Question]


def make_pipeline_router(service: Service, routes: Routes) -> APIRouter:
    """The route `POST /`."""
    router = APIRouter()

    async def texts(body: dict[str, Any], task: str, **options: Any) -> tuple[bool, list[Any]]:
        """Results of a body's texts, and whether it holds several."""
        inputs = _read(TextsRequest, body).inputs
        listed, side = [inputs] if isinstance(inputs, str) else inputs, service.side(None, "right")
        found = await service.run(task, listed, "inputs", side, **options)
        return isinstance(inputs, list), found.values

    async def zero_shot(body: dict[str, Any]) -> Any:
        asked = _parameters(ZeroShotParameters, body)
        if not asked.candidate_labels:
            raise empty("candidate_labels")
        _check_hypotheses(asked, service.settings)
        several, found = await texts(body, "zero_shot", **given(**dict(asked)))
        results = [
            [{"label": label, "score": score} for label, score in zip(one["labels"], one["scores"], strict=True)]
            for one in found
        ]
        return results if several else results[0]

    async def classify(body: dict[str, Any]) -> Any:
        asked = _parameters(ClassifyParameters, body)
        _, found = await texts(body, "classify", top_k=None, **given(activation=asked.function_to_apply))
        return [labels[: asked.top_k] for labels in found]

    async def tag(body: dict[str, Any]) -> Any:
        asked = _parameters(TagParameters, body)
        options = given(aggregation_strategy=asked.aggregation_strategy, stride=asked.stride)
        several, found = await texts(body, "tag", **options)
        ignored = set(asked.ignore_labels or ())
        kept = [[one for one in row if one.get("entity_group", one.get("entity")) not in ignored] for row in found]
        return kept if several else kept[0]

    async def extract(body: dict[str, Any]) -> Any:
        asked = _parameters(ExtractParameters, body)
        options = given(schema=asked.extraction_schema, language=asked.language, threshold=asked.threshold)
        several, found = await texts(body, "extract", **options)
        return found if several else found[0]

    async def answer(body: dict[str, Any]) -> Any:
        inputs, asked = _read(QuestionsRequest, body).inputs, _parameters(AnswerParameters, body)
        items = [dict(item) for item in (inputs if isinstance(inputs, list) else [inputs])]
        found = await service.run("answer", items, "inputs", **given(**dict(asked)))
        return found.values if isinstance(inputs, list) else found.values[0]

    by_kind: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
        "classifier": classify, "reranker": classify, "tagger": tag, "reader": answer, "extractor": extract,
    }  # fmt: skip

    @router.post("/")
    async def main(body: dict[str, Any]) -> Response:
        """The model's main route, and the form of InferenceClient."""
        of_model, parameters = kind(service), body.get("parameters")
        if isinstance(body.get("inputs"), dict) and "source_sentence" in body["inputs"]:
            return await routes.similarity(_read(SimilarityRequest, body))
        if isinstance(parameters, dict) and "candidate_labels" in parameters:
            return json_response(await zero_shot(body))
        if of_model == "reranker" and "query" in body:
            return await routes.rerank(_read(RerankRequest, body))
        if of_model == "classifier" and parameters is None:
            return await routes.predict(_read(PredictRequest, body))
        if of_model in by_kind:
            return json_response(await by_kind[of_model](body))
        return await routes.embed(_read(EmbedRequest, body))

    return router


def _check_hypotheses(asked: ZeroShotParameters, settings: ServerSettings) -> None:
    """Refuse labels whose hypotheses no call of the model takes, before they are written: they may be gigabytes.

    Raises:
        RequestError: 413.
    """
    labels, template = asked.candidate_labels, asked.hypothesis_template or ""
    labels = labels.split(",") if isinstance(labels, str) else labels
    if len(labels) > settings.max_batch_tokens:
        raise too_large(f"candidate_labels has {len(labels)} labels; expected at most {settings.max_batch_tokens}")
    characters = len(labels) * len(template) + template.count("{") * sum(map(len, labels))
    if characters > settings.payload_limit:
        raise too_large(
            f"candidate_labels and hypothesis_template make {characters} characters; "
            f"expected at most {settings.payload_limit}"
        )


def _read(model: type[B], body: Any, *place: str) -> B:
    """Check a part of a body.

    Raises:
        RequestValidationError: it is not as described.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        wrong = [{**one, "loc": ("body", *place, *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong) from error


def _parameters(model: type[B], body: dict[str, Any]) -> B:
    return _read(model, {} if body.get("parameters") is None else body["parameters"], "parameters")
