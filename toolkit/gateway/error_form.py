"""The door's own errors, in the form of the API that was asked, with Retry-After."""

from __future__ import annotations

from typing import Any

from toolkit.gateway.faults import TABLE, Fault

RETRY_AFTER_S = 1
"""Retry-After of 429 and 503: by then a full replica may have room, or a replica may have started again."""

_OPENAI = {"error": {"message": "%LOCAL_REPLY_BODY%", "type": "server_error", "param": None, "code": "%RESPONSE_CODE%"}}
FULL = "the door is full"
_OPENAI_FULL = {"error": {"message": FULL, "type": "rate_limit_error", "param": None, "code": 429}}
_TRITON, _TRITON_FULL = {"error": "%LOCAL_REPLY_BODY%"}, {"error": FULL}
ALL_FULL = "all replicas are full: their queues have no room"
LAST_WAS_FULL = "Request deadline exceeded"
"""The text of the front end's 504 if the last replica that it asked was full. The worker raises ConnectionTimeout for a
full queue: among the errors after which the front end asks another replica, only this one has a status of its own."""


def _mapper(condition: dict[str, Any], form: dict[str, Any], again: bool) -> dict[str, Any]:
    mapper: dict[str, Any] = {"filter": condition, "body_format_override": {"json_format": form}}
    if again:
        mapper["headers_to_add"] = [{"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}}]
    return mapper


def _path(prefix: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": prefix}}}}


def _status(code: int) -> dict[str, Any]:
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": f"toolkit.status.{code}"}}
    return {"status_code_filter": {"comparison": comparison}}


def _both(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


_BY_THE_GATE = {"response_flag_filter": {"flags": ["UAEX"]}}
_TOO_MANY = {"response_flag_filter": {"flags": ["UO"]}}
"""The door is at its limit of requests."""
_A_VERDICT = {
    "status_code_filter": {
        "comparison": {"op": "LE", "value": {"default_value": 499, "runtime_key": "toolkit.verdict"}}
    }
}
"""The gate's own answers are below 500. If it does not answer, Envoy says 503."""

ERROR_FORMS: dict[str, Any] = {
    "mappers": [
        {
            "filter": _both(_BY_THE_GATE, _A_VERDICT),
            "body_format_override": {
                "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
                "content_type": "application/json",
            },
        },
        {**_mapper(_both(_path("/v1/"), _TOO_MANY), _OPENAI_FULL, again=True), "status_code": 429},
        {**_mapper(_TOO_MANY, _TRITON_FULL, again=True), "status_code": 429},
        *(_mapper(_both(_path("/v1/"), _status(code)), _OPENAI, again=True) for code in (429, 503, 504)),
        _mapper(_path("/v1/"), _OPENAI, again=False),
        *(_mapper(_status(code), _TRITON, again=True) for code in (429, 503, 504)),
    ],
    "body_format": {"json_format": _TRITON},
}
"""Envoy's local_reply_config. For gRPC, Envoy itself turns the status into a gRPC status (503: UNAVAILABLE)."""

OPENAI_ERRORS = f"""
local kinds = {{
  [400] = "invalid_request_error", [401] = "authentication_error", [404] = "not_found_error",
  [429] = "rate_limit_error", [503] = "service_unavailable", [504] = "timeout_error",
}}
-- The front end's errors have no "error" around them, as OpenAI's have. It answers 404 without a body while no replica
-- has announced itself: the gate has checked the model's name by then, so that is 503. Full replicas are 429.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = tonumber(headers:get(":status"))
  if status < 400 then return end
  local body = handle:body(true)
  local text = body and body:getBytes(0, body:length()) or ""
  headers = handle:headers()  -- the object from before the wait for the body is dead
  if status == 404 and text == "" then
    status = 503
    headers:replace(":status", "503")
    text = '{{"message":"no replica is ready","type":"","code":503}}'
    headers:replace("content-type", "application/json")
  end
  if status == 504 and text:find("{LAST_WAS_FULL}", 1, true) then
    status = 429
    headers:replace(":status", "429")
    text = '{{"message":"{ALL_FULL}","type":"","code":429}}'
  end
  if (status == 429 or status == 503) and not headers:get("retry-after") then
    headers:add("retry-after", "{RETRY_AFTER_S}")
  end
  if text:sub(1, 11) == '{{"message":' then
    text = text:gsub('"type":"[^"]*"', '"type":"' .. (kinds[status] or "server_error") .. '"', 1)
    headers:replace("content-length", body:setBytes('{{"error":' .. text .. '}}'))
  end
end
"""
"""Lua for Envoy, on the route to the front end."""

_PHRASES = "\n".join(f'  {{"{phrase}", {str(fault is not Fault.REQUEST).lower()}}},' for fault, phrase in TABLE)

TRITON_FAULTS = f"""
-- Triton answers 400 for all errors of its models, a full queue or a dead rank included. What is not the request's own
-- fault becomes 503 here, before the route sees it, so that the request is sent to another replica.
local meanings = {{
{_PHRASES}
}}
-- As own_words of toolkit/gateway/faults.py: without the request's id, and without what is between quotes.
local QUOTE = "[\\34\\39]"
local function without_id(text)
  local first, last = text:find("[request id: ", 1, true)
  if not first then return text end
  local _, ends = text:find("] ", last, true)
  return text:sub(1, first - 1) .. text:sub((ends or #text) + 1)
end
local function own_words(json)
  local text = (json:match('"error":%s*"(.*)"') or json):gsub("\\\\(.)", "%1")
  text = without_id(text):gsub("\\\\" .. QUOTE, "")
  local kept, from, start = {{}}, 1, text:find(QUOTE)
  while start do
    if text:find("^[%w_]", start - 1) and start > 1 then
      start = text:find(QUOTE, start + 1)
    else
      local quote, last = text:sub(start, start), start
      repeat last = text:find(quote, last + 1, true) until not last or not text:find("^[%w_]", last + 1)
      kept[#kept + 1] = text:sub(from, start - 1)
      from = (last or #text) + 1
      start = text:find(QUOTE, from)
    end
  end
  return table.concat(kept) .. text:sub(from)
end
function envoy_on_response(handle)
  if handle:headers():get(":status") ~= "400" then return end
  local body = handle:body(true)
  local text = own_words(body and body:getBytes(0, body:length()) or ""):lower()
  for _, meaning in ipairs(meanings) do
    if text:find(meaning[1], 1, true) then
      if meaning[2] then handle:headers():replace(":status", "503") end
      return
    end
  end
end
"""
"""Lua for Envoy, at the replicas' HTTP: it sees the answer of each try."""

TRITON_ERRORS = f"""
-- Triton answers 500 for JSON that it cannot read.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if status == "503" and not headers:get("retry-after") then
    headers:add("retry-after", "{RETRY_AFTER_S}")
  elseif status == "500" then
    local body = handle:body(true)
    local text = body and body:getBytes(0, body:length()) or ""
    if text:find("failed to parse the request JSON buffer", 1, true) then
      handle:headers():replace(":status", "400")
    end
  end
end
"""
"""Lua for Envoy, on the route to Triton's HTTP: it sees the answer that the client gets."""
