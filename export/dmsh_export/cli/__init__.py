"""dmsh-export: checkpoint -> artefacts, each with its proof. Commands are thin; what they call lives beside this."""

from dmsh_export.cli.deploy import demo, deploy
from dmsh_export.cli.encode import encode
from dmsh_export.cli.inspect import inspect
from dmsh_export.cli.lint import lint
from dmsh_export.cli.onnx import onnx
from dmsh_export.cli.parity import latency, parity
from dmsh_export.cli.prove import prove
from dmsh_export.cli.quantise import quantize
from dmsh_export.cli.repository import repository
from dmsh_export.cli.trt import trt
from dmsh_export.cli.tune import tune
from dmsh_serving.commands import command, make_app
from dmsh_serving.program import let_openmp_sleep, run

app = make_app("Export a trained DMSH model, and prove that no bit of any code changed.", "dmsh-export")
command(app, "dmsh-export quantize build/model --images photos --out build/integer")(quantize)
command(
    app,
    "dmsh-export onnx build/model --out build/model.onnx --images photos",
    "dmsh-export onnx build/integer --out build/integer.onnx --images photos --dialect onnxruntime",
)(onnx)
command(app, "dmsh-export prove build/integer.onnx --against build/integer")(prove)
command(app, "dmsh-export deploy build/model --images photos --out build/service")(deploy)
command(app, "dmsh-export trt build/model.onnx --fp16 --out build/model.plan")(trt)
command(app, "dmsh-export parity build/model build/model.onnx --images photos")(parity)
command(app, "dmsh-export latency build/model build/model.onnx --batch 8 --rounds 20")(latency)
command(app, "dmsh-export repository build/model.onnx --gallery build/gallery --out build/repository")(repository)
command(app, "dmsh-export tune build/service/model.onnx build/service/openvino.onnx --out build/settings.json")(tune)
command(app, "dmsh-export lint build/repository")(lint)
command(app, "dmsh-export encode build/model.onnx --images photos --out build/codes --workers 2")(encode)
command(app, "dmsh-export inspect build/model.onnx")(inspect)
command(app, "dmsh-export demo --out build/demo")(demo)


def main() -> None:
    """Run dmsh-export."""
    let_openmp_sleep()
    run(app)
