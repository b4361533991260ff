"""What is given up before its process exists: the process comes, and goes without having done anything."""

import os
import signal
import threading

import pool_models
import psutil
import pytest
from leftovers import wait_until
from onecopy.pool import LoadFailed, Model, ModelNotFound, Pool


def test_a_loader_that_is_given_up_before_it_is_forked_builds_nothing(tmp_path):
    # It would wait for a file that never comes.
    late = Model(pool_models.make_late, args=(str(tmp_path / "never"), str(tmp_path / "begun")))
    with Pool({"scale": pool_models.Scale()}, workers=1) as pool:
        assert pool.run("scale", 1.0) == 2.0
        zygote = psutil.Process(pool.status().zygote_pid)

        def load():
            with pytest.raises((LoadFailed, ModelNotFound)):
                pool.load("late", late)

        loading = threading.Thread(target=load)
        zygote.send_signal(signal.SIGSTOP)
        try:
            loading.start()
            assert wait_until(lambda: "late" in {one.name for one in pool.models()})
            pool.unload("late")
        finally:
            os.kill(zygote.pid, signal.SIGCONT)
        loading.join()
        pool.load("next", Model(pool_models.make_scale))  # its loader is forked after the other
        workers = {one.pid for one in pool.status().workers}
        assert wait_until(lambda: {child.pid for child in zygote.children()} == workers)
