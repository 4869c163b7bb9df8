"""Hands each request to tensorrt_llm, and each of its answers back."""

import threading

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender())).start()

    def answer(self, request, sender):
        asked = pb_utils.InferenceRequest(
            model_name="tensorrt_llm", inputs=request.inputs(), requested_output_names=["text_output"]
        )
        waiting = None
        for response in asked.exec(decoupled=True):
            if response.output_tensors() or response.has_error():
                if waiting:
                    sender.send(waiting)
                error, tensors = response.error(), response.output_tensors()
                waiting = pb_utils.InferenceResponse(error=error) if error else pb_utils.InferenceResponse(tensors)
        sender.send(waiting, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
