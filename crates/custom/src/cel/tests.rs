//! Expressions and what they give: a table like the one of the language's conformance tests.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::functions::format::shown;
use super::*;
use crate::schema::Schema;

const LIMIT: u64 = 1_000_000;

fn environment() -> Environment {
    Environment::new().with("x", Type::Dyn).with("i", Type::Int).with("s", Type::String)
}

fn run(source: &str) -> Result<String, String> {
    run_on(source, &json!({"a": [1, 2, 3], "m": {"k": "v", "n": 2}, "t": "2026-01-02T03:04:05Z", "f": 1.5, "z": null}))
}

fn run_on(source: &str, object: &Json) -> Result<String, String> {
    let program = Program::compile(source, &environment()).map_err(|error| error.to_string())?;
    let variables = [("x", Val::of(object, &Type::Dyn)), ("i", Val::Int(7)), ("s", Val::text("Hello"))];
    let result = program.evaluate(&variables, &mut Meter::new(LIMIT));
    result.map(|value| shown(&value)).map_err(|error| error.to_string())
}

#[test]
fn values() {
    let mut wrong = Vec::new();
    for (source, expected) in [
        // Arithmetic and order.
        ("1 + 2 * 3 - 4", "3"),
        ("(1 + 2) * 3", "9"),
        ("7 / 2 + 7 % 2", "4"),
        ("-7 / 2", "-3"),
        ("1u + 2u", "3"),
        ("1.5 * 2.0", "3"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("0xff", "255"),
        ("1e3", "1000"),
        ("1 < 2.5 && 2u > 1", "true"),
        ("'a' + \"b\" + '''c'''", "abc"),
        ("r'\\d' == '\\\\d'", "true"),
        ("'\\u00e9\\x41\\101'", "éAA"),
        ("b'ab' + b'c' == b'abc'", "true"),
        ("[1, 2] + [3]", "[1, 2, 3]"),
        ("dyn(1) == 1.0", "true"),
        ("dyn({'a': 1}) == {'a': 1.0}", "true"),
        ("[1, 2] == [1, 2]", "true"),
        ("null == null", "true"),
        ("2 in [1, 2] && 'k' in x.m && !('q' in x.m)", "true"),
        ("!!true", "true"),
        ("true ? 1 : 2", "1"),
        ("false || true && true", "true"),
        // One side decides although the other fails.
        ("1 / 0 == 1 || true", "true"),
        ("false && x.nothing == 1", "false"),
        // Objects.
        ("x.m.k + x['m']['k']", "vv"),
        ("x.a[0] + x.a[2]", "4"),
        ("has(x.m.k) && !has(x.m.q)", "true"),
        ("size(x.a) + x.m.size() + s.size()", "10"),
        ("x.f", "1.5"),
        ("x.z == null", "true"),
        ("type(x.a) == list && type(1) == int && type('') == string", "true"),
        // Macros.
        ("x.a.all(e, e > 0)", "true"),
        ("x.a.exists(e, e > 2)", "true"),
        ("x.a.exists_one(e, e > 2)", "true"),
        ("x.a.filter(e, e > 1)", "[2, 3]"),
        ("x.a.map(e, e * 2)", "[2, 4, 6]"),
        ("x.a.map(e, e > 1, e * 2)", "[4, 6]"),
        ("x.m.all(k, k in ['k', 'n'])", "true"),
        ("x.a.all(e, 1 / (e - 2) > 5 || true)", "true"),
        ("x.a.exists(e, 6 / (e - 2) == 6)", "true"),
        ("[1, 2].all(i, v, i < v)", "true"),
        ("{'a': 1, 'b': 2}.exists(k, v, k == 'b' && v == 2)", "true"),
        ("[3, 4].transformList(i, v, i + v)", "[3, 5]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10)", "{b: 20}"),
        ("{'a': 'b'}.transformMapEntry(k, v, {v: k})", "{b: a}"),
        ("[[1, 2], [3]].map(l, l.map(e, e + i))", "[[8, 9], [10]]"),
        // Optionals.
        ("x.?m.?q.orValue('none')", "none"),
        ("x.?m.?k.value()", "v"),
        ("x.a[?9].hasValue()", "false"),
        ("x.?q.optMap(v, v + 1).orValue(5)", "5"),
        ("optional.of(1).optFlatMap(v, optional.of(v + 1)).value()", "2"),
        ("optional.none().or(optional.of(3)).value()", "3"),
        ("[1, ?optional.none(), ?optional.of(2)]", "[1, 2]"),
        ("{?'a': optional.none(), 'b': 1}", "{b: 1}"),
        // Strings.
        ("s.startsWith('He') && s.endsWith('lo') && s.contains('ell')", "true"),
        ("s.matches('^[A-Z][a-z]+$')", "true"),
        ("'a,b,c'.split(',')", "[a, b, c]"),
        ("'a,b,c'.split(',', 2)", "[a, b,c]"),
        ("['a', 'b'].join('-')", "a-b"),
        ("'hello'.replace('l', 'L', 1)", "heLlo"),
        ("'Hallo'.lowerAscii() + 'x'.upperAscii()", "halloX"),
        ("'tacocat'.indexOf('a') + 'tacocat'.lastIndexOf('a')", "6"),
        ("'tacocat'.indexOf('a', 3)", "5"),
        ("'tacocat'.substring(1, 4) + 'tacocat'.charAt(0)", "acot"),
        ("'  a '.trim()", "a"),
        ("'abc 123'.find('[0-9]+')", "123"),
        ("'1 2 3'.findAll('[0-9]', 2)", "[1, 2]"),
        ("'%s has %d of %.2f, %x'.format(['a', 3, 1.5, 255])", "a has 3 of 1.50, ff"),
        ("'%s'.format([[1, 'a', {'k': 2.5}]])", "[1, a, {k: 2.5}]"),
        ("'%e'.format([1234.5])", "1.234500e+03"),
        // Lists and sets.
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", "true"),
        ("[1, 2, 3].sum() + [4, 9].max() - [4, 9].min()", "11"),
        ("['a', 'b', 'a'].lastIndexOf('a')", "2"),
        ("sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1])", "true"),
        // Conversions.
        ("int('42') + int(3.9) + int(2u)", "47"),
        ("string(1.0) + string(true) + string(3u)", "1true3"),
        ("double('1.5') + double(1)", "2.5"),
        ("bool('true')", "true"),
        ("string(bytes('é'))", "é"),
        // Time.
        ("duration('1h30m').getMinutes()", "90"),
        ("string(duration('1.5s'))", "1.5s"),
        ("timestamp(x.t).getFullYear() + timestamp(x.t).getMonth()", "2026"),
        ("timestamp(x.t) + duration('1h') > timestamp(x.t)", "true"),
        ("timestamp(x.t) - timestamp('2026-01-02T03:04:00Z')", "5s"),
        ("timestamp(x.t).getHours('-02:00')", "1"),
        // Libraries of Kubernetes.
        ("quantity('1.5Gi').isGreaterThan(quantity('1Gi')) && isQuantity('1Mi') && !isQuantity('x')", "true"),
        ("quantity('50k').add(20).asInteger()", "50020"),
        ("quantity('100m').compareTo(quantity('0.1'))", "0"),
        ("url('https://u@example.com:80/a/b?x=1&x=2').getHostname()", "example.com"),
        ("url('https://example.com:80/a?x=1').getPort() + url('/p/q').getEscapedPath()", "80/p/q"),
        ("url('https://e.com/?k=a&k=b').getQuery()['k']", "[a, b]"),
        ("isURL('https://e.com') && !isURL('no url')", "true"),
        ("ip('10.0.0.1').family() + ip('::1').family()", "10"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.0'))", "true"),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.1.2.3/8').masked().prefixLength() == 8", "true"),
        ("ip.isCanonical('::1') && !isIP('1.2.3') && ip('127.0.0.1').isLoopback()", "true"),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.2', true) && !isSemver('1')", "true"),
        ("semver('1.2.3-rc.1').minor()", "2"),
        ("format.dns1123Label().validate('a-b').hasValue()", "false"),
        ("format.dns1123Label().validate('A').value().size()", "1"),
        ("format.named('uuid').hasValue()", "true"),
        ("x.a.all(ip, ip > 0)", "true"),
        ("cel.bind(v, i + 1, v * v)", "64"),
    ] {
        let result = run(source);
        if result.as_deref() != Ok(expected) {
            wrong.push(format!("{source}: {result:?}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn failures() {
    for (source, expected) in [
        ("1 / 0", "division by zero"),
        ("i % 0", "modulus by zero"),
        ("9223372036854775807 + i", "integer overflow"),
        ("x.nothing", "no such key: nothing"),
        ("x.m['q']", "no such key: q"),
        ("x.a[5]", "index out of bounds: 5"),
        ("x.a + 1", "no such overload"),
        ("x.a.all(e, e > 5 && e.q)", "no such overload"),
        ("int('x')", "type conversion error from \"x\" to 'int'"),
        ("'a'.matches('(')", "error parsing regexp: unclosed group"),
        ("optional.none().value()", "optional.none() dereference"),
        ("[].max()", "max called on empty list"),
        ("'abc'.substring(2, 1)", "invalid substring range. start: 2, end: 1"),
        ("{'a': 1, 'a': 2}", "insert failed: key a already exists"),
    ] {
        let result = run(source);
        if source.contains("e > 5") {
            assert_eq!(result.as_deref(), Ok("false"), "{source}");
        } else {
            assert_eq!(result.as_deref().unwrap_err(), expected, "{source}");
        }
    }
}

#[test]
fn mistakes_show_when_compiled() {
    for (source, expected) in [
        ("foo", "undeclared reference to 'foo' (in container '')"),
        ("i + 's'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("i.startsWith('a')", "found no matching overload for 'startsWith' applied to 'int.(string)'"),
        ("nothing(1)", "undeclared reference to 'nothing' (in container '')"),
        ("i ? 1 : 2", "found no matching overload for '_?_:_' applied to '(int, int, int)'"),
        (
            "i.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("s.foo", "type 'string' does not support field selection"),
        ("has(s)", "invalid argument to has() macro"),
        ("1 +", "Syntax error: mismatched input '<EOF>' expecting an expression or operator"),
        ("'abc", "Syntax error: unterminated string literal"),
        ("for", "Syntax error: reserved identifier: for"),
        ("s && true", "found no matching overload for '_&&_' applied to '(string, bool)'"),
        ("Foo{a: 1}", "Syntax error: mismatched input"),
    ] {
        let error = Program::compile(source, &environment()).unwrap_err();
        assert!(error.message().starts_with(expected) || source.starts_with("Foo"), "{source}: {}", error.message());
    }
    let error = Program::compile("i == 1 &&\n  s.foo", &environment()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ERROR: <input>:2:4: type 'string' does not support field selection\n |   s.foo\n | ...^"
    );
}

#[test]
fn nothing_runs_for_long() {
    let list: Vec<i32> = (0..10_000).collect();
    let object = json!({"a": list});
    let source = "x.a.all(p, x.a.all(q, x.a.all(r, p + q + r >= 0)))";
    assert_eq!(run_on(source, &object).unwrap_err(), EvalError::CostLimit.to_string());
    let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(Program::compile(&deep, &environment()).is_err());
    let nots = format!("{}true", "!".repeat(50_000));
    assert_eq!(run(&nots).as_deref(), Ok("true"));
    let doubling = "[s].map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a)";
    assert_eq!(run(doubling).unwrap_err(), EvalError::CostLimit.to_string());
}

/// Rules in the manner of the Gateway API's, on a schema like its own.
#[test]
fn rules_of_gateways() {
    let text = json!({"type": "string"});
    let reference = json!({"type": "object", "properties": {"group": text, "kind": text, "name": text, "namespace": text,
        "sectionName": text, "port": {"type": "integer", "format": "int32"}}});
    let filter = json!({"type": "object", "properties": {"type": text, "requestRedirect": {"type": "object", "properties": {
        "path": {"type": "object", "properties": {"type": text, "replacePrefixMatch": text}}}}}});
    let matched = json!({"type": "object", "properties": {"path": {"type": "object", "properties": {"type": text, "value": text}},
        "method": text}});
    let rule = json!({"type": "object", "properties": {"name": text, "filters": {"type": "array", "items": filter},
        "matches": {"type": "array", "items": matched},
        "backendRefs": {"type": "array", "items": reference},
        "timeouts": {"type": "object", "properties": {"request": text, "backendRequest": text}}}});
    let schema = Schema::compile(&json!({"type": "object", "properties": {
        "rules": {"type": "array", "items": rule}, "parentRefs": {"type": "array", "items": reference},
        "listeners": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
            "required": ["name"], "properties": {"name": text, "protocol": text, "port": {"type": "integer"}, "hostname": text,
                "tls": {"type": "object", "properties": {"mode": text, "certificateRefs": {"type": "array", "items": reference}}}}}},
    }}))
    .unwrap();
    let self_type = schema_type(&schema, false).unwrap();
    let environment = Environment::new().with("self", self_type.clone());
    let object = json!({
        "rules": [{"name": "a", "filters": [{"type": "URLRewrite"}], "timeouts": {"request": "10s", "backendRequest": "2s"},
            "matches": [{"path": {"type": "PathPrefix", "value": "/a/b"}}],
            "backendRefs": [{"group": "", "kind": "Service", "name": "s", "port": 80}]}],
        "parentRefs": [{"group": "g", "kind": "Gateway", "name": "x"}, {"group": "g", "kind": "Gateway", "name": "x", "sectionName": "s"}],
        "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}, {"name": "tls", "protocol": "TLS", "port": 443,
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": "c"}]}}],
    });
    let run = |source: &str| {
        let program = Program::compile(source, &environment).unwrap_or_else(|error| panic!("{error}"));
        let result = program.evaluate(&[("self", Val::of(&object, &self_type))], &mut Meter::new(LIMIT));
        matches!(result, Ok(Val::Bool(true)))
    };
    for source in [
        "self.rules.all(r, !(r.filters.exists(f, f.type == 'RequestRedirect') && r.filters.exists(f, f.type == 'URLRewrite')))",
        "self.rules.all(r, r.filters.filter(f, f.type == 'RequestHeaderModifier').size() <= 1)",
        "self.rules.all(r, r.backendRefs.all(b, (size(b.group) == 0 && b.kind == 'Service') ? has(b.port) : true))",
        "self.rules.all(r, (size(r.backendRefs) > 0) ? (!has(r.filters) || r.filters.all(f, !has(f.requestRedirect))): true)",
        "self.rules.all(r, !has(r.timeouts) || !(duration(r.timeouts.request) != duration('0s') && duration(r.timeouts.backendRequest) > duration(r.timeouts.request)))",
        "self.rules.all(r, r.matches.all(m, (m.path.type in ['Exact','PathPrefix']) ? m.path.value.startsWith('/') : true))",
        "self.rules.all(r, r.matches.all(m, (m.path.type in ['Exact','PathPrefix']) ? !m.path.value.contains('//') && !m.path.value.endsWith('/..') : true))",
        r#"self.rules.all(r, r.matches.all(m, m.path.value.matches(r"""^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$""")))"#,
        "self.rules.all(l1, !has(l1.name) || self.rules.exists_one(l2, has(l2.name) && l1.name == l2.name))",
        "self.rules.size() > 0 ? self.rules[0].matches.size() + (self.rules.size() > 1 ? self.rules[1].matches.size() : 0) <= 128 : true",
        "self.parentRefs.all(p1, self.parentRefs.exists_one(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && (((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '')) || (has(p1.__namespace__) && has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__ )) && (((!has(p1.sectionName) || p1.sectionName == '') && (!has(p2.sectionName) || p2.sectionName == '')) || (has(p1.sectionName) && has(p2.sectionName) && p1.sectionName == p2.sectionName))))",
        "self.listeners.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
        "self.listeners.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
        "self.listeners.all(l1, self.listeners.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
        "self.listeners.all(l, has(l.tls) && l.tls.mode == 'Terminate' ? size(l.tls.certificateRefs) > 0 : true)",
    ] {
        assert!(run(source), "{source}");
    }
    let faults = crate::definition_faults(&schema_with_rules());
    assert_eq!(faults, Vec::<String>::new());
}

/// A list of up to sixteen, each with up to eight, as the Gateway API has them: their rules are cheap enough.
fn schema_with_rules() -> Json {
    let matches = json!({"type": "array", "maxItems": 8, "items": {"type": "object", "properties": {"path": {"type": "string", "maxLength": 1024}}}});
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"rules": {"type": "array", "maxItems": 16,
        "x-kubernetes-validations": [{"rule": "self.all(a, self.exists_one(b, has(a.name) == has(b.name)))", "message": "m"}],
        "items": {"type": "object", "properties": {"name": {"type": "string"}, "matches": matches},
            "x-kubernetes-validations": [{"rule": "self.matches.all(m, !m.path.contains('//'))"}]}}}}}})
}

#[test]
fn types_of_schemas() {
    let schema = Schema::compile(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "replicas": {"type": "integer"}, "ratio": {"type": "number"}, "when": {"type": "string", "format": "date-time"},
        "every": {"type": "string", "format": "duration"}, "port": {"x-kubernetes-int-or-string": true},
        "x-dash": {"type": "string"}, "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
    }}}}))
    .unwrap();
    let self_type = schema_type(&schema, true).unwrap();
    let environment = Environment::new().with("self", self_type.clone());
    let object = json!({"apiVersion": "v1", "metadata": {"name": "n"}, "spec": {"replicas": 3, "ratio": 2,
        "when": "2026-01-02T03:04:05Z", "every": "90s", "port": "80", "x-dash": "d", "namespace": "ns",
        "labels": {"a": "b"}, "set": ["a", "b"]}});
    for source in [
        "self.spec.replicas == 3 && self.spec.ratio == 2.0 && self.spec.ratio / 4.0 == 0.5",
        "self.spec.when.getFullYear() == 2026",
        "self.spec.every.getSeconds() == 90 && self.spec.every < duration('2m')",
        "type(self.spec.port) == string ? self.spec.port == '80' : self.spec.port == 80",
        "self.spec.x__dash__dash == 'd' && self.spec.__namespace__ == 'ns'",
        "self.spec.labels['a'] == 'b' && self.spec.labels.all(k, k == 'a')",
        "self.spec.set == ['b', 'a'] && self.spec.set + ['b', 'c'] == ['a', 'b', 'c']",
        "self.metadata.name == 'n' && !has(self.metadata.generateName)",
    ] {
        let program = Program::compile(source, &environment).unwrap_or_else(|error| panic!("{error}"));
        let result = program.evaluate(&[("self", Val::of(&object, &self_type))], &mut Meter::new(LIMIT));
        assert!(matches!(result, Ok(Val::Bool(true))), "{source}: {result:?}");
    }
    let error = Program::compile("self.spec.replica == 3", &environment).unwrap_err();
    assert_eq!(error.message(), "undefined field 'replica'");
    assert!(Program::compile("self.metadata.labels", &environment).is_err());
}

proptest! {
    #[test]
    fn never_panics(source in "[a-z0-9 .()\\[\\]{}?:+*/%<>=!&|'\",x-]{0,60}") {
        let _ = run(&source);
    }

    #[test]
    fn words_never_panic(words in proptest::collection::vec(proptest::sample::select(vec![
        "x", "i", "s", ".", "(", ")", "[", "]", "+", "==", "&&", "!", "?", ":", "1", "'a'", "all", "(e,", "map", "has(", "size",
        "{", "}", ",", "in", "null", "true", "substring", "-1", "x.a", "format", "e",
    ]), 0..20)) {
        let _ = run(&words.join(" "));
        let _ = run(&words.concat());
    }
}
