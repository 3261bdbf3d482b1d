import json

import pyarrow as pa
import yaml
from run_folders import RECIPE, write_run

from sppo.report import page, run_figures, samples
from sppo.rundir.shards import read_shard, write_shard


def as_an_older_version_wrote_it(run):
    """Gives the records and tables of a run the names of version 0.1."""
    for record in run.glob("iter-*/evaluation.json"):
        content = json.loads(record.read_text())
        content["cut_share"] = content.pop("truncated_share")
        record.write_text(json.dumps(content))
    for shard in run.glob("iter-*/preferences/part-*.parquet"):
        table: pa.Table = read_shard(shard)
        names = ["parts" if name == "components" else name for name in table.column_names]
        write_shard(shard, table.rename_columns(names).replace_schema_metadata(None), {})


def test_a_run_of_an_older_version_is_shown_with_a_note(tmp_path):
    recipe = {**RECIPE, "evaluation": {"judge": {"type": "panel"}}}
    run = write_run(tmp_path / "run", recipe=recipe)
    now, parts = run_figures.read(run), samples.compared(run, 1, []).components
    as_an_older_version_wrote_it(run)
    older = run_figures.read(run)
    note = "The run was made by an older version of sppo: figures may be missing."
    assert note in older.notes and note not in now.notes
    assert [one.measures["truncated_share"] for one in older.iterations] == [
        one.measures["truncated_share"] for one in now.iterations
    ]
    assert older.recipe is not None and older.recipe.evaluation.oracle.type == "panel"
    assert samples.compared(run, 1, []).components.keys() == parts.keys() == {"anna", "ben"}
    page.write([run], tmp_path / "report.html")
    assert note in (tmp_path / "report.html").read_text()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["evaluation"]["judge"]
