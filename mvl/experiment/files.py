"""The files of a run folder, which is named by its experiment's fingerprint."""

#: The configuration, its fingerprint and the version of the protocol.
CONFIG = "config.json"
#: What a person calls the run, where somebody named it; no part of the fingerprint.
NAME = "name"
#: The task's facts, so that a run predicts without its data set.
TASK = "task.json"
#: Names of the training, validation and test cases.
SPLIT = "split.json"
#: What else the folder's name is made of: see `mvl.experiment.identity`.
IDENTITY = "identity.json"
#: Cases that were left out because of a fault, if there are any.
SKIPPED = "skipped.csv"
#: Structures of training and validation cases that the model's grid does not show, if any.
LOST = "lost.csv"
#: The language block by reference: source, revision, layer, SHA-256.
BLOCK = "block.json"
#: Versions, device, number format, threads, commit; "a, then b" where a resumed training changed.
ENVIRONMENT = "environment.json"
#: One row per epoch.
CURVES = "curves.csv"
#: The trained weights of the best epoch.
WEIGHTS = "model.safetensors"
#: What the next epoch depends on; removed when training ends.
STATE = "state.safetensors"
#: What the training images were like, for `mvl predict`.
DOMAIN = "domain.json"
#: Written when training ends; such a run is never trained again.
TRAINED = "trained.json"
#: One row per test case and structure: every metric, in native space.
CASES = "cases.csv"
#: What was found in healthy test cases, in ml, if there are any.
HEALTHY = "healthy.csv"
#: Written last; such a run is never evaluated again.
DONE = "done.json"
#: Why training stopped; removed by the next attempt.
FAILED = "failed.json"
