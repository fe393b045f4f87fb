"""What the documents say of the API is true: every curl example is run, every answer fits its schema."""

import json
import re
import subprocess

import jsonschema
import pytest
from project import ROOT
from web_world import IMAGES, KEYS, ask, png

from dmsh_serving.web.app import Web
from dmsh_serving.web.settings import WebSettings

pytestmark = pytest.mark.live

TEXT = (ROOT / "docs" / "web.md").read_text()
EXAMPLES = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if "curl" in line
]
DOCUMENT = json.loads((ROOT / "serving/dmsh_serving/web/static/openapi.json").read_text())


def path_of(example):
    return re.search(r":8080(/[^'\s?]*)", example)[1]


def matches(path, template):
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)


def test_every_route_of_the_api_is_described_and_has_an_example(web_world, tmp_path):
    app = Web(WebSettings(triton="127.0.0.1:1", images=web_world.images, cache=tmp_path)).app()
    served = {
        (route.path.replace(":key", ""), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if route.path.startswith("/v1/")
    }
    assert served == {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    for path, _ in served:
        assert [example for example in EXAMPLES if matches(path_of(example), path)], path


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_its_answer_fits_the_schema(web_page, tmp_path, example):
    (tmp_path / "query.png").write_bytes(png(IMAGES[3]))
    command = example.replace("http://127.0.0.1:8080/", web_page.url)
    for slash in ("/", "%2F"):  # a key of the demo
        command = command.replace(f"animals-birds{slash}000.webp", KEYS[10].replace("/", slash))
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    (template,) = [path for path in DOCUMENT["paths"] if matches(path_of(example), path)]
    ((_, operation),) = DOCUMENT["paths"][template].items()
    content = operation["responses"]["200"]["content"]
    if "image/webp" in content:
        (file,) = tmp_path.glob("*.webp")
        assert file.read_bytes()[8:12] == b"WEBP"
        return
    if "application/octet-stream" in content:
        data = (tmp_path / "thumbnails.bin").read_bytes()
        length = int.from_bytes(data[:4])
        assert data == 2 * data[: 4 + length]
        assert data[12:16] == b"WEBP"
        return
    answer = json.loads(done.stdout)
    validator(content["application/json"]["schema"]).validate(answer)


def validator(schema):
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_an_error_fits_its_schema_and_an_answer_that_does_not_is_seen(web_page):
    problem = ask(web_page, "/v1/search", {"key": "nothing"}).json()
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    validator(schema).validate(problem)
    with pytest.raises(jsonschema.ValidationError):
        validator(DOCUMENT["components"]["schemas"]["Answer"]).validate(problem)


def test_the_document_is_served_and_every_reference_in_it_leads_somewhere(web_page):
    assert ask(web_page, "/v1/openapi.json").json() == DOCUMENT
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)):
        assert name in DOCUMENT["components"]["schemas"]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
