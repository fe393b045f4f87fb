from dmsh_serving.triton.server.model_processes import all_living, all_stubs, living_stubs


def process(folder, pid, name, state, children=""):
    task = folder / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    (task / "children").write_text(children)
    (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 1 1 0 -1")


def test_only_living_stubs_among_the_servers_children_count(tmp_path):
    process(tmp_path, 10, "tritonserver", "S", children="11 12 13 14 ")
    process(tmp_path, 11, "triton_python_b", "S")
    process(tmp_path, 12, "triton_python_b", "Z")
    process(tmp_path, 13, "other (odd) name", "S")
    process(tmp_path, 20, "triton_python_b", "S")
    assert living_stubs(10, tmp_path) == {11}
    assert all_stubs(10, tmp_path) == {11, 12}


def test_children_of_every_thread_count(tmp_path):
    process(tmp_path, 10, "tritonserver", "S", children="11")
    thread = tmp_path / "10" / "task" / "15"
    thread.mkdir()
    (thread / "children").write_text("12")
    for pid in (11, 12):
        process(tmp_path, pid, "triton_python_b", "R")
    assert living_stubs(10, tmp_path) == {11, 12}


def test_a_server_that_is_gone_has_none(tmp_path):
    assert living_stubs(10, tmp_path) == frozenset()


def test_stubs_that_were_found_are_asked_for_alone(tmp_path):
    process(tmp_path, 11, "triton_python_b", "S")
    process(tmp_path, 12, "triton_python_b", "S")
    process(tmp_path, 13, "triton_python_b", "Z")
    process(tmp_path, 14, "other", "S")
    assert all_living([11, 12], tmp_path)
    for dead in (13, 14, 15):
        assert not all_living([11, dead], tmp_path)
