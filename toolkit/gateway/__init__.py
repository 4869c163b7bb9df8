"""The front door of `toolkit up`: Envoy as the one public port, NVIDIA Dynamo's runtime for OpenAI's API.

    client -> Envoy -> Triton (HTTP, SSE, gRPC)
                    -> front end (Dynamo) -> worker, one per replica -> Triton, by token ids

Envoy and Dynamo are programs of others: this room writes their files, starts their parts and translates between
them. Nothing here keeps state: toolkit.up decides what is started, and when.
"""
